"""`python -m bench.gpu.peer BATCH CONTEXT`: seconds of a decoding step of transformers on the same shapes, with a
static cache and a compiled forward pass, by the wall clock of `generate`: its loop on the host is in it.

In a process of its own, which takes the memory with it. Prints one line of JSON.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.steps import LLAMA_8B

# The difference of the two is decoding alone; the first call compiles.
_FEW_TOKENS, _MANY_TOKENS, _REPEATS = 8, 72, 3
_TIMEOUT_S = 180


def peer_seconds(batch: int, context: int) -> float | None:
    """None, and why on stderr, if it does not work with what is installed."""
    command = [sys.executable, "-m", "bench.gpu.peer", str(batch), str(context)]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"transformers was not measured: {error}\n{error.stderr!s}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1])["step_s"])


def measure(shape: dict[str, Any], batch: int, context: int, device: torch.device, dtype: torch.dtype) -> float:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in shape.items() if name != "model_type"}
    config = AutoConfig.for_model(shape["model_type"], **settings, eos_token_id=None, bos_token_id=None)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.eval()
    prompts = torch.randint(shape["vocab_size"], (batch, context), device=device)

    def seconds(new: int) -> float:
        start_s = time.perf_counter()
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            cache_implementation="static",
        )
        # Reads a value, so all is done.
        assert int(out[0, -1]) >= 0
        assert out.shape[1] == context + new
        return time.perf_counter() - start_s

    # The longest first: the cache is made once, for it.
    for new in (_MANY_TOKENS, _FEW_TOKENS, _MANY_TOKENS):
        seconds(new)
    return min(seconds(_MANY_TOKENS) - seconds(_FEW_TOKENS) for _ in range(_REPEATS)) / (_MANY_TOKENS - _FEW_TOKENS)


def main() -> None:
    batch, context = map(int, sys.argv[1:])
    step_s = measure(LLAMA_8B, batch, context, torch.device("cuda"), torch.bfloat16)
    print(json.dumps({"step_s": step_s}))


if __name__ == "__main__":
    main()
