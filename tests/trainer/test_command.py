"""The whole command as a user runs it, on a tiny base: prompts, answers by a real service, features, heads, output."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from launcher.logs import LogWriter
from launcher.resolve import ModelRequest, resolve
from tests.checkpoints import make_checkpoint
from tests.processes import child_environ, is_running, wait_until
from trainer import pipeline
from trainer.__main__ import main

LIMIT_S = 240.0
HIDDEN, VOCAB = 72, 131


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "model", hidden=HIDDEN, vocab=VOCAB, eos_token_id=None)


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """The command sets torch's threads; other tests keep theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _words(base: Path, output: Path, **flags: object) -> list[str]:
    settings = {"model_id": base, "output": output, "held_out": 0.3, "epochs": 2, "batch_tokens": 64}
    return [f"--{name.replace('_', '-')}={value}" for name, value in (settings | flags).items()]


def _run(words: list[str]) -> Result:
    """The command in this process, which has loaded torch and transformers already."""
    return CliRunner().invoke(main, words)


def _start(words: list[str], **environ: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *words],
        env=child_environ(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _write_prompts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"question": f"What is {i} and {i * i}?"}) + "\n" for i in range(count)))
    return path


def _write_answers(path: Path, count: int = 24) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines = [
        {"prompt": f"Number {i}", "token_ids": torch.randint(3, 90, (12,), generator=generator).tolist()}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _children(pid: int) -> list[int]:
    """All processes below `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def test_a_killed_run_goes_on_and_ends_with_heads_that_the_launcher_takes(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "heads"
    words = _words(base, output, data=_write_prompts(tmp_path / "data.jsonl", 80), self_prompts=4)
    words += ["--max-answer-tokens=48", "--sampled-fraction=0.5", "--heads=3", "--threads=1"]
    answers = output / "work" / "answers.jsonl"
    first = _start(words)
    wait_until(
        lambda: first.poll() is not None or (answers.is_file() and answers.read_bytes().count(b"\n") >= 5),
        what="the first answers",
        limit_s=LIMIT_S,
    )
    children = _children(first.pid)
    first.send_signal(signal.SIGKILL)
    said, _ = first.communicate()
    kept = answers.read_text().splitlines() if answers.is_file() else []
    assert 5 <= len(kept) < 80, said
    assert len(children) >= 3  # launcher, agent or shard, router
    wait_until(lambda: not any(is_running(pid) for pid in children), what="the service of a killed run to end")

    second = _run(words)
    assert second.exit_code == 0, second.stdout + second.stderr
    lines = answers.read_text().splitlines()
    assert lines[: len(kept) - 1] == kept[:-1]  # the last one may have been cut short
    entries = [json.loads(line) for line in lines]
    assert len({tuple(entry["prompt_token_ids"]) for entry in entries}) == len(entries) >= 80
    # Half of the answers are greedy, so that the base repeats them.
    table = second.stdout.split("base model, next token")[1].splitlines()
    assert float(table[0]) > 0.5
    assert [line.split(",")[0] for line in table[1:4]] == ["head 0", "head 1", "head 2"]

    config = json.loads((output / "config.json").read_text())
    assert config == {
        "base_model_name_or_path": str(base),
        "medusa_num_heads": 3,
        "medusa_num_layers": 1,
        "version": "2",
    }
    assert (output / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    figures = json.loads((output / "drafthouse_medusa.json").read_text())
    assert {len(figures[name]) for name in ("acceptance", "probability")} == {3}
    assert "token_ids" not in figures
    request = ModelRequest(str(output), None, "float32", None)
    resolved = resolve(request, LogWriter(level="error", json_output=False))
    assert (resolved.path, resolved.medusa_path) == (base, output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_end_ends_its_service_and_leaves_nothing(
    base: Path, tmp_path: Path, number: signal.Signals
) -> None:
    work, temporary = tmp_path / "heads" / "work", tmp_path / "tmp"
    temporary.mkdir()
    words = _words(base, tmp_path / "heads", data=_write_prompts(tmp_path / "data.jsonl", 80))
    process = _start([*words, "--max-answer-tokens=48", "--threads=1"], TMPDIR=str(temporary))
    wait_until(
        lambda: process.poll() is not None or (work / "answers.jsonl").is_file(), what="the service", limit_s=LIMIT_S
    )
    children = _children(process.pid)
    assert list(temporary.iterdir())
    process.send_signal(number)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number, said
    assert not any(is_running(pid) for pid in children)
    assert not list(temporary.iterdir())


def test_a_run_under_nohup_outlives_its_terminal(base: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _run(_words(base, tmp_path / "heads"))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_tensors_have_the_names_and_shapes_of_their_format(base: Path, tmp_path: Path, version: str) -> None:
    flags = {"version": version, "heads": 2, "layers": 2}
    result = _run(_words(base, tmp_path / "heads", answers=_write_answers(tmp_path / "a.jsonl"), **flags))
    assert result.exit_code == 0, result.stderr
    tensors = load_file(tmp_path / "heads" / "medusa_lm_head.safetensors")
    expected = {f"{i}.{j}.linear.weight": (HIDDEN, HIDDEN) for i in range(2) for j in range(2)}
    expected |= {f"{i}.{j}.linear.bias": (HIDDEN,) for i in range(2) for j in range(2)}
    if version == "v1":
        expected |= {f"{i}.2.weight": (VOCAB, HIDDEN) for i in range(2)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert config.get("version") == ("2" if version == "v2" else None)
    # A second time everything is there already.
    again = _run(_words(base, tmp_path / "heads", answers=tmp_path / "a.jsonl", **flags))
    assert again.stdout == result.stdout


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "drafthouse_medusa.json", "config.json"])
def test_a_kill_while_heads_are_written_anew_leaves_none_with_figures_of_others(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = tmp_path / "heads"
    words = _words(base, output, answers=_write_answers(tmp_path / "a.jsonl"), epochs=1)
    assert _run(words).exit_code == 0
    heads, figures = output / "medusa_lm_head.safetensors", output / "drafthouse_medusa.json"
    before = heads.read_bytes()
    replace = os.replace

    def dying(partial: Path, path: Path) -> None:
        if path == output / name:
            raise KeyboardInterrupt
        replace(partial, path)

    monkeypatch.setattr("trainer.files.os.replace", dying)
    assert _run([*words, "--seed=1", "--frequent-tokens=20"]).exit_code == 1
    assert not (output / "config.json").exists()
    has_new_heads, has_new_figures = heads.read_bytes() != before, figures.is_file()
    assert (has_new_heads, has_new_figures) == {
        heads.name: (False, False),
        figures.name: (True, False),
        "config.json": (True, True),
    }[name]
    monkeypatch.undo()
    assert _run([*words, "--seed=1", "--frequent-tokens=20"]).exit_code == 0
    assert (output / "config.json").is_file()


def test_heads_of_frequent_tokens_say_which(base: Path, tmp_path: Path) -> None:
    answers = _write_answers(tmp_path / "a.jsonl")
    result = _run(_words(base, tmp_path / "heads", answers=answers, frequent_tokens=20))
    assert result.exit_code == 0, result.stderr
    token_ids = json.loads((tmp_path / "heads" / "drafthouse_medusa.json").read_text())["token_ids"]
    assert len(token_ids) == 20
    assert token_ids == sorted(set(token_ids))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing to train on"),
        ({"self_prompts": 1, "layers": 0}, "--layers 0"),
        ({"self_prompts": 1, "version": "v1", "frequent_tokens": 9}, "--frequent-tokens is for --version v2"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(
    base: Path, tmp_path: Path, flags: dict[str, object], message: str
) -> None:
    result = _run(_words(base, tmp_path / "heads", **flags))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "heads").exists()


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _with(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", _cut_short, r"model\.safetensors is damaged or cut short .*copy it again"),
        ("tokenizer.json", lambda path: path.write_text("{}"), r"KeyError.*tokenizer\.json .* must be there and whole"),
        (
            "chat_template.jinja",
            lambda path: path.write_text("{{ raise_exception('no system message') }}"),
            r"chat template .*no system message.*chat_template\.jinja .*--answers with prompt_token_ids",
        ),
        ("config.json", lambda path: _with(path, vocab_size=99), r"config\.json and the weights must fit each other"),
        ("config.json", lambda path: _with(path, num_hidden_layers=3), r"lack 9 tensors .*, first model\.layers\.2"),
    ],
)
def test_a_broken_base_is_refused_by_its_file(
    base: Path, tmp_path: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    broken = shutil.copytree(base, tmp_path / "broken")
    damage(broken / file)
    result = _run(_words(broken, tmp_path / "heads", answers=_write_answers(tmp_path / "a.jsonl")))
    assert result.exit_code == 1
    assert re.search(f"train-medusa: {broken}.*{message}", result.stderr), result.stderr or result.exception


def test_a_folder_that_holds_a_model_is_not_written_to(base: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", hidden=HIDDEN, vocab=VOCAB)
    for folder in (base, other):
        before = (folder / "config.json").read_bytes()
        result = _run(_words(base, folder, answers=_write_answers(tmp_path / "a.jsonl")))
        assert result.exit_code == 1
        assert f"--output {folder} holds a model" in result.stderr
        assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
@pytest.mark.parametrize("name", ["config.json", "work/features.json"])
def test_a_file_of_its_own_that_is_broken_is_named(base: Path, tmp_path: Path, name: str, content: str) -> None:
    broken = tmp_path / "heads" / name
    broken.parent.mkdir(parents=True)
    broken.write_text(content, encoding="latin1")
    result = _run(_words(base, tmp_path / "heads", answers=_write_answers(tmp_path / "a.jsonl")))
    assert result.exit_code == 1
    assert re.search(f"train-medusa: {broken} is not .*; mend or delete it", result.stderr), result.exception


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("load_base", "the base needs more memory than the GPU has free"),
        ("compute_features", "computing the features needs more memory"),
        ("train", "training the heads needs more memory .* give fewer --heads .* or give --device cpu"),
        ("evaluate", "evaluating the heads needs more memory"),
    ],
)
def test_a_gpu_without_room_is_said_with_what_needs_less(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, message: str
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(f"trainer.pipeline.{phase}", out_of_memory)
    result = _run(_words(base, tmp_path / "heads", answers=_write_answers(tmp_path / "a.jsonl"), epochs=1))
    assert result.exit_code == 1
    assert re.search(f"train-medusa: {message}", result.stderr), result.exception


def test_two_runs_do_not_write_to_one_output(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = _words(base, tmp_path / "heads", answers=_write_answers(tmp_path / "a.jsonl"), epochs=1)
    train, second = pipeline.train, list[Result]()

    def beside_another(*arguments: Any, **named: Any) -> None:
        second.append(_run(words))
        train(*arguments, **named)

    monkeypatch.setattr(pipeline, "train", beside_another)
    first = _run(words)
    assert [result.exit_code for result in (first, *second)] == [0, 1]
    assert f"another train-medusa is at work in {tmp_path}/heads/work" in second[0].stderr


def test_answers_are_not_mixed_with_those_of_other_settings(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "heads"
    data = _write_prompts(tmp_path / "data.jsonl", 2)
    # Nothing listens there.
    flags = {"data": data, "service": "127.0.0.1:9"}
    first = _run(_words(base, output, **flags, max_answer_tokens=8))
    assert first.exit_code == 1
    assert "the service at 127.0.0.1:9 failed" in first.stderr
    second = _run(_words(base, output, **flags, max_answer_tokens=9))
    assert second.exit_code == 1
    assert "begun with another base or other settings" in second.stderr
