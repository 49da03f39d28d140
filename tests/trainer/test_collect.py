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
