"""vLLM's engine on CPU behind two pipes; README.md beside this file has the protocol."""

import argparse
import json
import os
import sys
import time
from typing import Any

_MAX_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--speculate", type=int, default=0)
    options = parser.parse_args()
    # Nothing but replies may reach the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    peer = _Vllm(options.model, options.speculate)
    print(json.dumps({"ready": peer.about()}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answers = peer.answer(request["prompts"], request["max_new_tokens"])
        print(json.dumps({"answers": answers}), file=replies, flush=True)


class _Vllm:
    def __init__(self, model: str, speculate: int) -> None:
        import vllm

        self._vllm = vllm
        self._next_id = 0
        drafts: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": speculate}
        drafts |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
        self._engine = vllm.LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=2048,
            max_num_seqs=_MAX_BATCH,
            enable_prefix_caching=False,
            speculative_config=drafts if speculate else None,
        ).llm_engine

    def about(self) -> dict[str, str]:
        return {"version": self._vllm.__version__, "dtype": "bfloat16"}

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[dict[str, Any]]:
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens, ignore_eos=True)
        answers: list[dict[str, Any]] = [{"token_ids": [], "times_s": [], "counts": [], "steps": 0} for _ in prompts]
        by_id = {}
        start_s = time.perf_counter()
        for prompt, answer in zip(prompts, answers, strict=True):
            self._next_id += 1
            by_id[str(self._next_id)] = answer
            self._engine.add_request(str(self._next_id), {"prompt_token_ids": prompt}, sampling)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            time_s = time.perf_counter() - start_s
            for output in outputs:
                # vLLM may lengthen the id that it was given.
                answer = by_id.get(output.request_id) or by_id[output.request_id.split("-")[0]]
                token_ids = list(output.outputs[0].token_ids)
                num_new = len(token_ids) - len(answer["token_ids"])
                if num_new > 0:
                    answer["token_ids"] = token_ids
                    answer["times_s"].append(time_s)
                    answer["counts"].append(num_new)
                    answer["steps"] += 1
        return answers


if __name__ == "__main__":
    main()
