"""transformers.generate behind two pipes: `python -m bench.transformers_child FOLDER DTYPE THREADS`.

A line of JSON in, {"token_ids": […], "max_new_tokens": n}, and one out, {"token_ids": […], "times_s": […]}. Plain
greedy generation as its own documentation shows it, end tokens ignored.
"""

import json
import os
import sys
import time
from typing import Any

import torch
import transformers


class _Clock:
    """transformers' streamer interface: gets the prompt first, then each token as it is chosen."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._start_s = time.perf_counter()
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self.times_s.append(time.perf_counter() - self._start_s)
        self._is_prompt = False

    def end(self) -> None:
        """Part of the interface."""


def main(folder: str, dtype: str, threads: int) -> None:
    # Nothing but replies may reach the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.eval()
    model.generation_config.eos_token_id = None
    for line in sys.stdin:
        replies.write(json.dumps(_generate(model, json.loads(line))) + "\n")
        replies.flush()


@torch.inference_mode()
def _generate(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    clock = _Clock()
    prompt = torch.tensor([request["token_ids"]])
    tokens = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=request["max_new_tokens"],
        pad_token_id=0,
        streamer=clock,
    )
    return {"token_ids": tokens[0, prompt.shape[1] :].tolist(), "times_s": clock.times_s}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
