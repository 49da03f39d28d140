import json
from pathlib import Path

import pytest

from trainer.errors import TrainError
from trainer.prompts import drawn, prompt_of, read_prompts


@pytest.mark.parametrize(
    "entry",
    [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], "prompt": "no"},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], "text": "no"},
        {"turns": ["Why?", "And then?"], "question": "no"},
        {"prompt": " Why?\n", "question": "no", "text": "no"},
        {"question": "Why?", "answer": "So.", "text": "no"},
        {"text": "Why?"},
    ],
)
def test_the_first_words_of_the_user_are_found_in_every_form(entry: dict[str, object]) -> None:
    assert prompt_of(entry) == "Why?"


@pytest.mark.parametrize(
    "entry", [{}, {"turns": []}, {"prompt": "  "}, {"text": 3}, {"messages": [{"role": "system"}]}]
)
def test_a_line_without_a_prompt_is_named(tmp_path: Path, entry: dict[str, object]) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "Why?"}\n\n' + json.dumps(entry) + "\n")
    with pytest.raises(TrainError, match=r"data\.jsonl, line 3: no prompt"):
        read_prompts([file])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Why?", "not JSON"),
        ('{"text": ' + 200_000 * "[", "not JSON"),
        ('{"text": "\\ud83d"}', "half of a surrogate pair"),
        ("[1]", "a JSON object is needed"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(TrainError, match=rf"data\.jsonl, line 1: {message}"):
        read_prompts([file])


def test_prompts_are_drawn_once_each_and_the_same_for_the_same_seed() -> None:
    prompts = [f"prompt {i % 50}" for i in range(100)]
    assert drawn(prompts, None, seed=0) == prompts[:50]
    some = drawn(prompts, 10, seed=1)
    assert len(set(some)) == 10
    assert some == drawn(prompts, 10, seed=1) != drawn(prompts, 10, seed=2)
