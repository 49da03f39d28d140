"""`python -m bench.gpu`: checks the kernels of the CUDA path against their references and measures them.

Minutes, without a network or a model. What is found is written after each part, and a part that fails does not keep the
others from being run. Exit codes: 0 all right, 1 a check, a test or a part failed, 2 no GPU.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu.attention import CASES, Case, difference, layer_seconds
from bench.gpu.ceilings import copy_bandwidth, product_speed
from bench.gpu.marked_tests import run_marked_tests
from bench.gpu.prompts import PROMPT_CASES, PromptCase, PromptTime, time_prompt
from bench.gpu.report import Figures, Measured, to_json, to_text
from bench.gpu.step_times import PEER_CASES, PROMPT_LENGTHS, STEP_CASES, PromptStepTime, StepCase, StepTime
from bench.say import say
from shard.attention import kernel_name

_WRONG, _NO_GPU = 1, 2
# More figures.
Part = Callable[[Figures, torch.device], Figures]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench-gpu.json"), help="the JSON file")
    parser.add_argument(
        "--only", nargs="+", choices=_PARTS, default=list(_PARTS), metavar="PART", help=", ".join(_PARTS)
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: there is no CUDA device here; nothing was checked or measured", file=sys.stderr)
        sys.exit(_NO_GPU)
    device = torch.device("cuda", 0)
    figures = run_parts({name: _PARTS[name] for name in options.only}, _ceilings(device), device, options.output)
    print(to_text(figures))
    if not figures.is_right:
        sys.exit(_WRONG)


def run_parts(parts: dict[str, Part], figures: Figures, device: torch.device, output: Path) -> Figures:
    for name, part in parts.items():
        say(name)
        try:
            figures = part(figures, device)
        except ImportError as error:
            say(str(error))
            figures = replace(figures, left_out=[*figures.left_out, f"{name}: {error}"])
        except Exception as error:
            traceback.print_exc()
            figures = replace(figures, failures=[*figures.failures, f"{name}: {error!r}"])
        output.write_text(to_json(figures))
        # Others take what memory there is. After some errors the device does nothing more here, but in other processes.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
    return figures


def _ceilings(device: torch.device) -> Figures:
    return Figures(
        device=torch.cuda.get_device_name(device),
        torch=torch.__version__,
        attention_kernel=kernel_name(torch.bfloat16, device, softcap=None),
        copy_bandwidth=copy_bandwidth(device),
        product_speed=product_speed(device),
    )


def _tests(figures: Figures, device: torch.device) -> Figures:
    passed, said = run_marked_tests()
    return replace(figures, tests=said, tests_passed=passed)


def _attention(figures: Figures, device: torch.device) -> Figures:
    return replace(figures, attention=[_measure_attention(case, device) for case in CASES])


def _prompts(figures: Figures, device: torch.device) -> Figures:
    return replace(figures, prompts=[_measure_prompt(case, device) for case in PROMPT_CASES])


def _steps(figures: Figures, device: torch.device) -> Figures:
    return replace(figures, steps=list(_measure_steps(device)))


def _prompt_steps(figures: Figures, device: torch.device) -> Figures:
    return replace(figures, prompt_steps=list(_measure_prompt_steps(device)))


def _transformers(figures: Figures, device: torch.device) -> Figures:
    return replace(figures, peer_s=dict(_measure_peer()))


def _service(figures: Figures, device: torch.device) -> Figures:
    from bench.gpu.service import speeds_of_7b

    return replace(figures, service=[*figures.service, *speeds_of_7b()])


def _default_model(figures: Figures, device: torch.device) -> Figures:
    from bench.gpu.service import speeds_of_default_model

    return replace(figures, service=[*figures.service, *speeds_of_default_model()])


_PARTS: dict[str, Part] = {
    "tests": _tests,
    "attention": _attention,
    "prompts": _prompts,
    "steps": _steps,
    "prompt-steps": _prompt_steps,
    "transformers": _transformers,
    "service": _service,
    "default-model": _default_model,
}


def _measure_steps(device: torch.device) -> Iterator[StepTime]:
    from bench.gpu.steps import LLAMA_8B, time_steps

    for time in time_steps(LLAMA_8B, STEP_CASES, dtype=torch.bfloat16, device=device):
        say(f"{time.case}: {1e3 * time.step_s:.2f} ms")
        yield time


def _measure_prompt_steps(device: torch.device) -> Iterator[PromptStepTime]:
    from bench.gpu.steps import LLAMA_8B, time_prompt_steps

    for time in time_prompt_steps(LLAMA_8B, PROMPT_LENGTHS, dtype=torch.bfloat16, device=device):
        say(f"a prompt of {time.length}: {1e3 * time.step_s:.1f} ms")
        yield time


def _measure_peer() -> Iterator[tuple[StepCase, float]]:
    from bench.gpu.peer import peer_seconds

    for case in PEER_CASES:
        say(f"transformers: {case}")
        step_s = peer_seconds(case.batch, case.context)
        if step_s is not None:
            yield case, step_s


def _measure_attention(case: Case, device: torch.device) -> Measured:
    say(f"attention: {case}")
    return Measured(case, difference(case, device), layer_seconds(case, device))


def _measure_prompt(case: PromptCase, device: torch.device) -> PromptTime:
    say(f"attention: {case}")
    return time_prompt(case, device)


if __name__ == "__main__":
    main()
