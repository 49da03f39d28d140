"""`python -m bench.gpu`: checks the kernels of the CUDA path against their references and measures them.

Minutes, without a network or a model. Exit codes: 0 all right, 1 a check or a test failed, 2 no GPU.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.gpu.attention import CASES, Case, difference, layer_seconds
from bench.gpu.ceilings import copy_bandwidth, product_speed
from bench.gpu.marked_tests import run_marked_tests
from bench.gpu.prompts import PROMPT_CASES, PromptCase, PromptTime, time_prompt
from bench.gpu.report import Figures, Measured, to_json, to_text
from bench.gpu.service_speed import ServiceSpeed
from bench.gpu.step_times import PEER_CASES, PROMPT_LENGTHS, STEP_CASES, PromptStepTime, StepCase, StepTime
from shard.attention import kernel_name

_WRONG, _NO_GPU = 1, 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench-gpu.json"), help="the JSON file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: there is no CUDA device here; nothing was checked or measured", file=sys.stderr)
        sys.exit(_NO_GPU)
    figures = _measure(torch.device("cuda", 0))
    options.output.write_text(to_json(figures))
    print(to_text(figures))
    if not figures.is_right:
        sys.exit(_WRONG)


def _measure(device: torch.device) -> Figures:
    _say("ceilings")
    bandwidth, speed = copy_bandwidth(device), product_speed(device)
    _say("tests that need a GPU")
    passed, tests = run_marked_tests()
    return Figures(
        device=torch.cuda.get_device_name(device),
        torch=torch.__version__,
        attention_kernel=kernel_name(torch.bfloat16, device, softcap=None),
        copy_bandwidth=bandwidth,
        product_speed=speed,
        tests=tests,
        tests_passed=passed,
        attention=[_measure_attention(case, device) for case in CASES],
        prompts=[_measure_prompt(case, device) for case in PROMPT_CASES],
        steps=list(_measure_steps(device)),
        prompt_steps=list(_measure_prompt_steps(device)),
        peer_s=dict(_measure_peer()),
        service=_measure_service(),
    )


def _measure_steps(device: torch.device) -> Iterator[StepTime]:
    if find_spec("safetensors") is None:
        return
    from bench.gpu.steps import LLAMA_8B, time_steps

    _say("steps of a model of 8B, random weights")
    for time in time_steps(LLAMA_8B, STEP_CASES, dtype=torch.bfloat16, device=device):
        _say(f"{time.case}: {1e3 * time.step_s:.2f} ms")
        yield time


def _measure_prompt_steps(device: torch.device) -> Iterator[PromptStepTime]:
    if find_spec("safetensors") is None:
        return
    from bench.gpu.steps import LLAMA_8B, time_prompt_steps

    for time in time_prompt_steps(LLAMA_8B, PROMPT_LENGTHS, dtype=torch.bfloat16, device=device):
        _say(f"a prompt of {time.length}: {1e3 * time.step_s:.1f} ms")
        yield time


def _measure_peer() -> Iterator[tuple[StepCase, float]]:
    if find_spec("safetensors") is None or find_spec("transformers") is None:
        return
    from bench.gpu.peer import peer_seconds

    # Others take what memory there is.
    torch.cuda.empty_cache()
    for case in PEER_CASES:
        _say(f"transformers: {case}")
        step_s = peer_seconds(case.batch, case.context)
        if step_s is not None:
            yield case, step_s


def _measure_service() -> list[ServiceSpeed]:
    if find_spec("safetensors") is None:
        return []
    try:
        from bench.gpu.service import service_speeds
    except (ImportError, RuntimeError) as error:
        # RuntimeError: a gRPC older than what the code was generated for.
        _say(f"the service was not measured: {error}")
        return []
    _say("the service")
    torch.cuda.empty_cache()
    return service_speeds(_say)


def _measure_attention(case: Case, device: torch.device) -> Measured:
    _say(f"attention: {case}")
    return Measured(case, difference(case, device), layer_seconds(case, device))


def _measure_prompt(case: PromptCase, device: torch.device) -> PromptTime:
    _say(f"attention: {case}")
    return time_prompt(case, device)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
