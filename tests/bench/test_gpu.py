"""bench.gpu where there is no GPU, and what it says where there is one."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import marked_tests, peer, service
from bench.gpu.__main__ import run_parts
from bench.gpu.attention import Case
from bench.gpu.oracle_model import VICUNA_7B, write_oracle_model
from bench.gpu.prompts import PromptCase, PromptTime, time_prompt
from bench.gpu.report import Figures, Measured, is_small, to_json, to_text
from bench.gpu.service_speed import ServiceSpeed
from bench.gpu.step_times import PromptStepTime, StepCase, StepTime
from bench.gpu.steps import LLAMA_8B, time_prompt_steps, time_steps
from shard.states import SequenceStates
from tests.processes import child_environ

FIGURES = Figures(
    device="a GPU",
    torch="2.11",
    attention_kernel="drafthouse-triton",
    copy_bandwidth=3e12,
    product_speed=7.5e14,
    tests="40 passed",
    tests_passed=True,
    attention=[Measured(Case(1, 1024, 1), 0.001, 2e-6), Measured(Case(8, 8192, 64), 0.004, 1.5e-4)],
    prompts=[PromptTime(PromptCase(0, 4096), 5e-4, 0.002, 4e-4), PromptTime(PromptCase(4096, 4096), 1e-3, 0.002, None)],
    steps=[StepTime(StepCase(1, 1024, 15), 8e-3, 16 * 10**9)],
    prompt_steps=[PromptStepTime(4096, 0.1, 6 * 10**13)],
    peer_s={StepCase(1, 1024, 15): 9e-3},
    service=[ServiceSpeed("7B", "random", 8, off=1000.0, on=1500.0, ratio=1.502, drafts_per_step=3.25)],
)


def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu"],
        env=child_environ(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "bench.gpu: there is no CUDA device here; nothing was checked or measured\n"


def test_the_table_gives_bandwidths_and_ends_with_a_verdict() -> None:
    lines = to_text(FIGURES).splitlines()
    assert lines[1] == "copy 3.00 TB/s, bf16 product 750 TFLOP/s"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert ["8", "8192", "64", "150.0", "1.79", "60%", "0.0040"] in rows
    assert ["1", "1024", "15", "16 bit", "8.00", "2.00", "67%", "9.00"] in rows
    assert ["0", "4096", "500", "275", "400", "0.0020"] in rows
    assert ["4096", "4096", "1000", "412", "", "0.0020"] in rows
    assert ["4096", "100.0", "40960", "600", "80%"] in rows
    assert rows[-2] == ["7B", "random", "8", "1000", "1500", "1.502", "3.2"]
    assert lines[-1] == "all right"


def test_a_difference_or_a_failed_test_is_not_right() -> None:
    wrong = replace(FIGURES, attention=[replace(FIGURES.attention[0], difference=0.5)])
    assert "0.5000 WRONG" in to_text(wrong)
    assert to_text(wrong).endswith("NOT RIGHT")
    assert to_text(replace(FIGURES, tests_passed=False)).endswith("NOT RIGHT")
    wrong = replace(FIGURES, prompts=[replace(FIGURES.prompts[0], difference=0.5)])
    assert to_text(wrong).endswith("NOT RIGHT")
    # A comparison with NaN is false.
    assert not is_small(float("nan"))


def test_a_part_that_fails_keeps_what_others_found(tmp_path: Path) -> None:
    def fails(figures: Figures, device: torch.device) -> Figures:
        raise LookupError("no agent")

    def lacks(figures: Figures, device: torch.device) -> Figures:
        raise ModuleNotFoundError("No module named 'grpc'")

    def finds(figures: Figures, device: torch.device) -> Figures:
        # What was found before is written by now.
        assert json.loads((tmp_path / "found.json").read_text())["failures"] == ["one: LookupError('no agent')"]
        return replace(figures, tests="3 passed")

    nothing = Figures("a GPU", "2.11", "drafthouse-triton", 3e12, 7.5e14)
    assert nothing.is_right
    parts = {"one": fails, "two": lacks, "three": finds}
    figures = run_parts(parts, nothing, torch.device("cpu"), tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["tests"] == "3 passed"
    assert to_text(figures).splitlines()[-3:] == [
        "left out: two: No module named 'grpc'",
        "failed: one: LookupError('no agent')",
        "NOT RIGHT",
    ]
    assert run_parts({"two": lacks}, nothing, torch.device("cpu"), tmp_path / "found.json").is_right


def test_json_has_a_line_for_each_case() -> None:
    written = json.loads(to_json(FIGURES))
    assert written["copy_bandwidth"] == 3e12
    assert written["is_right"]
    assert [(step["batch"], step["rows"]) for step in written["attention"]] == [(1, 1), (8, 64)]
    assert round(written["attention"][0]["layer_us"], 6) == 2


def test_the_tests_that_need_a_gpu_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    passed, summary = marked_tests.run_marked_tests()
    assert passed
    assert "skipped" in summary


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "whole steps: not run" in to_text(replace(FIGURES, steps=[]))
    monkeypatch.setattr(marked_tests, "find_spec", lambda name: None)
    assert marked_tests.run_marked_tests() == (True, "not run: pytest is not installed")


@pytest.mark.parametrize("is_readable", [True, False])
def test_whole_steps_are_timed_over_what_they_read(is_readable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU, with rows as on a GPU too."""
    made = SequenceStates.__init__

    def unreadable(self: SequenceStates, **sizes: Any) -> None:
        made(self, **sizes)
        self.is_readable = is_readable

    monkeypatch.setattr(SequenceStates, "__init__", unreadable)
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 80}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    cases = (StepCase(1, 20, 0), StepCase(1, 20, 7), StepCase(3, 40, 0), StepCase(1, 20, 0, "int8"))
    times = list(time_steps(LLAMA_8B | small | heads, cases, dtype=torch.float32, device=torch.device("cpu")))
    assert [time.case for time in times] == list(cases)
    assert all(time.step_s > 0 for time in times)
    # Two layers and a head; keys and values of two heads of 16 in two layers, float32.
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    weights = 4 * (2 * layer + 64 + 80 * 64)
    quantized = weights - 3 * (2 * (layer - 2 * 64) + 80 * 64)
    assert [time.read_bytes for time in times] == [
        *(weights + 512 * tokens for tokens in (20, 20, 120)),
        quantized + 512 * 20,
    ]


def test_whole_prompts_are_timed_over_their_products() -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 80}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    times = list(time_prompt_steps(LLAMA_8B | small | heads, (5, 40), dtype=torch.float32, device=torch.device("cpu")))
    assert [time.length for time in times] == [5, 40]
    assert all(time.step_s > 0 for time in times)
    # Factors of norms are counted with the matrices.
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert [time.operations for time in times] == [2 * (2 * layer + 64) * length for length in (5, 40)]


def test_the_peer_decodes_as_many_tokens_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_MANY_TOKENS", 16)
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    # It looks itself at how much came; a difference of small times may be of either sign.
    step_s = peer.measure(LLAMA_8B | small | heads, 2, 5, torch.device("cpu"), torch.float32)
    assert math.isfinite(step_s)


@pytest.mark.parametrize("context", [0, 33])
def test_attention_of_a_prompt_is_compared(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the path for CPU; how the kernel fares is told on a GPU."""
    monkeypatch.setattr("bench.gpu.prompts.captured", lambda run: run)
    monkeypatch.setattr("bench.gpu.timing.torch.cuda.synchronize", lambda: None)
    found = time_prompt(PromptCase(context, 50), torch.device("cpu"))
    assert found.layer_s > 0
    assert (found.flash_s is None) == (context > 0)
    assert found.difference < 0.02


def test_the_service_is_faster_with_heads_that_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On CPU, with a small model; how much faster is not asserted, that heads were asked and drafts checked is."""
    small = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}

    def write(folder: str) -> None:
        config = VICUNA_7B | small | heads
        write_oracle_model(Path(folder), right=0.8, num_heads=3, device="cpu", config=config)

    monkeypatch.setattr(service, "_write_model", write)
    monkeypatch.setattr(service, "_CONCURRENCY", (1, 2))
    monkeypatch.setattr(service, "_THREADS", 1)
    monkeypatch.setattr(service, "_PAIRS", 1)
    # Whether drafts pay is a matter of time, which such a model and a machine with other work do not tell.
    monkeypatch.setattr(service, "_FLAGS", ("--draft-min-probability=0",))
    monkeypatch.setattr(service, "present_gguf", lambda: None)
    speeds = [*service.speeds_of_7b(), *service.speeds_of_default_model()]
    assert [(speed.model, speed.at_once) for speed in speeds] == [("7B", 1), ("7B", 2)]
    assert capsys.readouterr().err.endswith("\nSmolLM2-135M-Instruct was not measured: it is not here\n")
    assert all(speed.on > 0 and speed.off > 0 for speed in speeds)
    assert speeds[0].drafts_per_step > 0
