"""llama.cpp, through llama-cpp-python, behind two pipes; README.md beside this file has the protocol.

One prompt goes through `Llama.generate`, with its prompt lookup or without. Several are batched here on llama.cpp's own
C API: all sequences decode in one batch; prompts go in first, each in a batch of its own.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# GGUF's numbers, llama.h: LLAMA_FTYPE_MOSTLY_BF16 and _Q8_0.
_FILE_TYPES = {None: 32, "int8": 7}
_CONTEXT = 2048
# Cells of the KV cache for each of several sequences.
_CONTEXT_EACH = 1024
_MAX_BATCH_TOKENS = 2048
# Tokens that come out of one verification follow each other within less.
_SAME_STEP_S = 5e-4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--speculate", type=int, default=0)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--quantize", choices=["int8"])
    options = parser.parse_args()
    # Nothing but replies may reach the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if options.prepare is not None:
        _prepare(options.model, options.prepare, options.quantize)
        return
    peer = _LlamaCpp(options.model, options.threads, options.speculate, options.quantize)
    print(json.dumps({"ready": peer.about()}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompts = request["prompts"]
        answers = (
            [peer.answer_one(prompts[0], request["max_new_tokens"])]
            if len(prompts) == 1
            else peer.answer_together(prompts, request["max_new_tokens"])
        )
        print(json.dumps({"answers": answers}), file=replies, flush=True)


def _prepare(gguf: str, output: Path, quantize: str | None) -> None:
    """The same weights in bfloat16, dequantised by llama.cpp, or in its Q8_0."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = _FILE_TYPES[quantize]
    parameters.allow_requantize = True
    parameters.pure = True
    output.mkdir(parents=True, exist_ok=True)
    code = llama_cpp.llama_model_quantize(gguf.encode(), str(output / "model.gguf").encode(), parameters)
    if code != 0:
        sys.exit(f"llama_model_quantize failed with {code}")


class _LlamaCpp:
    def __init__(self, model: str, threads: int, speculate: int, quantize: str | None) -> None:
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        self._lib = llama_cpp
        self._threads = threads
        self._speculate = speculate
        self._quantize = quantize
        draft = LlamaPromptLookupDecoding(num_pred_tokens=speculate, max_ngram_size=3) if speculate else None
        self._llama = llama_cpp.Llama(
            model_path=str(Path(model) / "model.gguf"),
            n_ctx=_CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            draft_model=draft,
            logits_all=draft is not None,
            verbose=False,
        )

    def about(self) -> dict[str, str]:
        return {"version": self._lib.__version__, "dtype": "q8_0" if self._quantize else "bfloat16"}

    def answer_one(self, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
        self._llama.reset()
        answer: dict[str, Any] = {"token_ids": [], "times_s": [], "counts": [], "steps": 0}
        start_s = time.perf_counter()
        for token in self._llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
            time_s = time.perf_counter() - start_s
            answer["token_ids"].append(token)
            if self._speculate and answer["times_s"] and time_s - answer["times_s"][-1] < _SAME_STEP_S:
                answer["counts"][-1] += 1
            else:
                answer["times_s"].append(time_s)
                answer["counts"].append(1)
            if len(answer["token_ids"]) >= max_new_tokens:
                break
        answer["steps"] = len(answer["counts"])
        return answer

    def answer_together(self, prompts: list[list[int]], max_new_tokens: int) -> list[dict[str, Any]]:
        lib = self._lib
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = len(prompts) * _CONTEXT_EACH
        parameters.n_batch = _MAX_BATCH_TOKENS
        parameters.n_ubatch = 512
        parameters.n_seq_max = len(prompts)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = False
        answers: list[dict[str, Any]] = [{"token_ids": [], "times_s": [], "counts": [], "steps": 0} for _ in prompts]
        # Made before the clock starts: a server makes it once.
        context = lib.llama_init_from_model(self._llama.model, parameters)
        batch = lib.llama_batch_init(_MAX_BATCH_TOKENS, 0, 1)
        try:
            start_s = time.perf_counter()
            for sequence, prompt in enumerate(prompts):
                rows = [(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(prompt)]
                self._decode(context, batch, rows, answers, start_s)
            for step in range(max_new_tokens - 1):
                # In the order of their numbers: otherwise llama.cpp splits the batch.
                rows = [
                    (answer["token_ids"][-1], len(prompts[sequence]) + step, sequence, True)
                    for sequence, answer in enumerate(answers)
                ]
                self._decode(context, batch, rows, answers, start_s)
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)
        return answers

    def _decode(
        self,
        context: Any,
        batch: Any,
        rows: list[tuple[int, int, int, bool]],
        answers: list[dict[str, Any]],
        start_s: float,
    ) -> None:
        """Rows are (token, position, sequence, whether its next token is wanted)."""
        import numpy

        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        code = self._lib.llama_decode(context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode failed with {code}")
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = numpy.ctypeslib.as_array(
                    self._lib.llama_get_logits_ith(context, i), shape=(self._llama.n_vocab(),)
                )
                answers[sequence]["token_ids"].append(int(logits.argmax()))
        # The last of them is in: all tokens of the step arrive now.
        time_s = time.perf_counter() - start_s
        for _, _, sequence, wanted in rows:
            if wanted:
                answers[sequence]["times_s"].append(time_s)
                answers[sequence]["counts"].append(1)
                answers[sequence]["steps"] += 1


if __name__ == "__main__":
    main()
