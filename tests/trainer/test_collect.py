"""What the service is asked, and what is kept of its answers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from trainer.client import Client, Generated, Refused
from trainer.collect import Journal, missing_answers, write_answers


class _Service:
    """Takes prompts of up to three tokens."""

    max_total_tokens = 100

    async def generate(self, prompt: Sequence[int], **_: object) -> Generated:
        if len(prompt) > 3:
            raise Refused(f"a prompt of {len(prompt)} tokens is too long")
        return Generated([7, 8], ended=True)


def test_prompts_that_a_service_refuses_are_left_out_and_said_and_another_one_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, prompts = Journal(tmp_path / "answers.jsonl", 1), [[1, 2], [1, 2, 3, 4], [5], [1, 2, 3, 4, 5]]
    client = cast(Client, _Service())
    asyncio.run(write_answers(client, journal, prompts, max_tokens=9, sampled_fraction=0.0, seed=0))
    assert [entry["prompt_token_ids"] for entry in journal.entries()] == [[1, 2], [5]]
    assert "2 prompts are left out, the service refuses them: a prompt of 4 tokens" in capsys.readouterr().out
    assert missing_answers(journal, prompts) == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_a_prompt_that_fills_the_service_has_no_answer_and_is_not_asked_again(tmp_path: Path) -> None:
    journal, prompts = Journal(tmp_path / "answers.jsonl", 1), [[1, 2], [3] * 100]
    client = cast(Client, _Service())
    asyncio.run(write_answers(client, journal, prompts, max_tokens=9, sampled_fraction=0.0, seed=0))
    kept = {tuple(entry["prompt_token_ids"]): entry["token_ids"] for entry in journal.entries()}
    assert kept == {(1, 2): [7, 8], (3,) * 100: []}
    assert missing_answers(journal, prompts) == []


def test_what_a_killed_run_left_of_a_line_is_cut_and_its_prompt_asked_again(tmp_path: Path) -> None:
    journal, prompts = Journal(tmp_path / "answers.jsonl", 1), [[1, 2], [5]]
    client = cast(Client, _Service())
    asyncio.run(write_answers(client, journal, prompts, max_tokens=9, sampled_fraction=0.0, seed=0))
    whole = journal.path.read_bytes()
    for torn in (whole[:-1], whole[:-9], whole[:3], b""):
        journal.path.write_bytes(torn)
        again = Journal(journal.path, 1)
        asyncio.run(
            write_answers(client, again, missing_answers(again, prompts), max_tokens=9, sampled_fraction=0.0, seed=0)
        )
        assert sorted(entry["prompt_token_ids"] for entry in again.entries()) == prompts
