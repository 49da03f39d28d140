"""transformers.generate behind two pipes; README.md beside this file has the protocol.

Greedy generation as its own documentation shows it; prompts that come together are padded on the left.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
import transformers


class _Clock:
    """transformers' streamer interface: gets the prompts first, then what each step yields."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.counts: list[int] = []
        self._start_s = time.perf_counter()
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self.times_s.append(time.perf_counter() - self._start_s)
            self.counts.append(value.numel())
        self._is_prompt = False

    def end(self) -> None:
        """Part of the interface."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--speculate", type=int, default=0)
    options = parser.parse_args()
    # Nothing but replies may reach the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    model.eval()
    model.generation_config.eos_token_id = None
    reply: dict[str, Any] = {"ready": {"version": transformers.__version__, "dtype": "bfloat16"}}
    print(json.dumps(reply), file=replies, flush=True)
    for line in sys.stdin:
        reply = {"answers": _generate(model, json.loads(line), options.speculate)}
        print(json.dumps(reply), file=replies, flush=True)


@torch.inference_mode()
def _generate(model: Any, request: dict[str, Any], speculate: int) -> list[dict[str, Any]]:
    prompts = request["prompts"]
    drafts = {"prompt_lookup_num_tokens": speculate} if speculate else {}
    clock = _Clock()
    longest = max(map(len, prompts))
    tokens = model.generate(
        torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        do_sample=False,
        max_new_tokens=request["max_new_tokens"],
        pad_token_id=0,
        streamer=clock,
        **drafts,
    )
    counts = [count // len(prompts) for count in clock.counts]
    return [
        {"token_ids": row, "times_s": clock.times_s, "counts": counts, "steps": len(counts)}
        for row in tokens[:, longest:].tolist()
    ]


if __name__ == "__main__":
    main()
