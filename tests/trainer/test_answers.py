import json
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from trainer.answers import Answer, is_held_out, read_answers, usable
from trainer.errors import TrainError
from trainer.tokenizer import BaseTokenizer


def test_an_answer_may_bring_its_prompt_as_text_which_the_chat_template_is_applied_to(tmp_path: Path) -> None:
    tokenizer = BaseTokenizer(make_checkpoint(tmp_path / "base"))
    ids = tokenizer.prompt_token_ids("hello")
    file = tmp_path / "answers.jsonl"
    lines = [{"prompt": "hello", "token_ids": [5, 6]}, {"prompt_token_ids": ids, "token_ids": [5, 6]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_answers(file, tokenizer)
    assert first == second == Answer(tuple(ids), (5, 6))
    assert tokenizer.text(list(ids)).endswith("assistant\n")


def test_the_words_before_the_user_are_those_that_every_chat_begins_with(tmp_path: Path) -> None:
    tokenizer = BaseTokenizer(make_checkpoint(tmp_path / "base"))
    prefix = tokenizer.user_turn_token_ids()
    assert prefix == tokenizer.prompt_token_ids("hello")[: len(prefix)]
    assert tokenizer.text(prefix) == "user\n"


def test_an_answer_in_another_form_is_named(tmp_path: Path) -> None:
    tokenizer = BaseTokenizer(make_checkpoint(tmp_path / "base"))
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "hello", "token_ids": [5]}\n{"prompt": "hello", "answer": "you"}\n')
    with pytest.raises(TrainError, match=r"answers\.jsonl, line 2"):
        read_answers(file, tokenizer)


def test_answers_of_another_model_are_refused() -> None:
    with pytest.raises(TrainError, match="holds token 131, but the base has 131"):
        usable([Answer((1,), (2, 131))], vocab_size=131, max_positions=None)


def test_one_answer_to_a_prompt_is_kept_the_longest_first_whatever_their_order() -> None:
    answers = [
        Answer((1,), (2, 3)),
        Answer((1,), (9, 9)),
        Answer((2,), (3, 4, 5)),
        Answer((3,), (4,)),
        Answer((4,), ()),
    ]
    kept = usable(answers, vocab_size=10, max_positions=None)
    assert kept == [answers[2], answers[0]]
    assert usable([*answers[2:], *answers[:2]], vocab_size=10, max_positions=None) == kept
    assert usable(answers, vocab_size=10, max_positions=3) == [answers[0]]


def test_the_held_out_prompts_are_a_fixed_share_whatever_was_answered() -> None:
    prompts = [tuple(range(i, i + 5)) for i in range(2000)]
    held_out = {prompt for prompt in prompts if is_held_out(Answer(prompt, (1, 2)), 0.1)}
    assert 130 < len(held_out) < 270
    assert held_out == {prompt for prompt in prompts if is_held_out(Answer(prompt, (7,)), 0.1)}
    assert not any(is_held_out(Answer(prompt, ()), 0.0) for prompt in prompts)
