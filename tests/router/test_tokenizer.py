"""Against transformers where it reads the same folder, against the files' meaning elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from router.errors import InvalidRequest
from router.tokenizer import Tokenizer, TokenizerError, TokenKind
from tests.router.tiny_tokenizers import CHAT_TEMPLATE, byte_level, save

CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello </s> 你\n"},
]
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": CHAT_TEMPLATE,
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
}


def test_chat_and_text_are_tokenized_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, byte_level(), tokenizer_config=CONFIG)
    ours, reference = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    token_ids = ours.apply_chat_template(CONVERSATION)
    assert token_ids == list(expected)
    assert [ours.token(t) for t in token_ids].count("<s>") == 1
    for text in ("hello world", "", "</s>x"):
        assert ours.encode(text) == reference(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == reference.decode(
            reference(text)["input_ids"], skip_special_tokens=True
        )


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"generation_config": {"eos_token_id": [3, 4]}, "config": {"eos_token_id": 5}}, {3, 4}),
        ({"generation_config": {}, "config": {"eos_token_id": 5}}, {5}),
        ({"generation_config": {"eos_token_id": 0}}, {0}),
        ({"config": {"eos_token_id": None}}, {264}),
        ({}, {264}),
    ],
)
def test_end_tokens_come_from_the_first_file_that_names_them(
    tmp_path: Path, files: dict[str, dict[str, Any]], eos: set[int]
) -> None:
    save(tmp_path, byte_level(), tokenizer_config=CONFIG, **files)
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == eos


@pytest.mark.parametrize("wrong", [-1, "</s>", [2, None], True, 10**30])
def test_end_tokens_that_are_no_ids_are_refused(tmp_path: Path, wrong: Any) -> None:
    save(tmp_path, byte_level(), tokenizer_config=CONFIG, config={"eos_token_id": wrong})
    with pytest.raises(TokenizerError, match=r"config\.json: eos_token_id must be"):
        Tokenizer.from_folder(tmp_path)


def test_of_several_templates_the_default_is_used_and_a_template_file_wins(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "a{{ eos_token }}"}]
    save(tmp_path, byte_level(), tokenizer_config=CONFIG | {"chat_template": templates})
    spell = lambda: [t.token(i) for t in [Tokenizer.from_folder(tmp_path)] for i in t.apply_chat_template([])]  # noqa: E731
    assert spell() == ["a", "</s>"]
    (tmp_path / "chat_template.jinja").write_text("{% generation %}b{% endgeneration %}")
    assert spell() == ["b"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "no chat template"),
        (CHAT_TEMPLATE, "unknown role"),
        ("{{ messages[5].content.x }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_the_request_s_fault(
    tmp_path: Path, template: str | None, reason: str
) -> None:
    save(tmp_path, byte_level(), tokenizer_config=CONFIG | {"chat_template": template})
    tokenizer = Tokenizer.from_folder(tmp_path)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        tokenizer.apply_chat_template([{"role": "pirate", "content": "arr"}])
    assert caught.value.field == "chat"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "is missing"),
        ("tokenizer.json", '{"version"', "cannot be read"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[" * 100_000, "not valid JSON"),
        ("chat_template.jinja", "{{" + "(" * 100_000, "chat template cannot be read"),
        ("config.json", "[]", "JSON object"),
        ("chat_template.jinja", "{% if %}", "chat template cannot be read"),
    ],
)
def test_a_broken_folder_is_one_clear_error(tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    save(tmp_path, byte_level(), tokenizer_config=CONFIG)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=reason) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    assert len(Tokenizer(backend).encode("abcde")) == 6
    assert len(Tokenizer(backend).encode("")) == 1


def test_special_and_unknown_ids_are_silent() -> None:
    tokenizer = Tokenizer(byte_level())
    assert [tokenizer.kind(t) for t in (263, 264, 999)] == [TokenKind.SILENT] * 3
    assert [tokenizer.kind(t) for t in (0, 265)] == [TokenKind.TEXT] * 2
    assert tokenizer.token(999) == ""
