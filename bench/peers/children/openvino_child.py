"""OpenVINO GenAI's continuous batching behind two pipes; README.md beside this file has the protocol.

The precision of the arithmetic is left to OpenVINO, which takes what the processor has.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


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
    peer = _OpenVino(options.model, options.threads, options.speculate, options.quantize)
    print(json.dumps({"ready": peer.about()}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answers = peer.answer(request["prompts"], request["max_new_tokens"])
        print(json.dumps({"answers": answers}), file=replies, flush=True)


def _prepare(model: str, output: Path, quantize: str | None) -> None:
    """The folder as OpenVINO's own format, weights in 16 bit as they are, or all in 8 as optimum-intel does it."""
    import openvino
    import openvino_tokenizers
    import transformers
    from optimum.intel import OVModelForCausalLM

    is_int8 = quantize is not None
    OVModelForCausalLM.from_pretrained(model, export=True, compile=False, load_in_8bit=is_int8).save_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(output)
    encoder, decoder = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(encoder, output / "openvino_tokenizer.xml")
    openvino.save_model(decoder, output / "openvino_detokenizer.xml")


class _OpenVino:
    def __init__(self, model: str, threads: int, speculate: int, quantize: str | None) -> None:
        import openvino
        import openvino_genai

        self._openvino = openvino
        self._genai = openvino_genai
        self._speculate = speculate
        self._quantize = quantize
        self._next_id = 0
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = False
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if speculate:
            properties["prompt_lookup"] = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def about(self) -> dict[str, str]:
        precision = self._openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        return {
            "version": self._genai.__version__,
            "dtype": " over ".join(filter(None, [precision.to_string(), self._quantize])),
        }

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[dict[str, Any]]:
        import numpy

        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_new_tokens
        config.do_sample = False
        config.ignore_eos = True
        if self._speculate:
            config.num_assistant_tokens = self._speculate
            config.max_ngram_size = 3
        answers: list[dict[str, Any]] = [{"token_ids": [], "times_s": [], "counts": [], "steps": 0} for _ in prompts]
        start_s = time.perf_counter()
        handles = []
        for prompt in prompts:
            self._next_id += 1
            ids = self._openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
            handles.append(self._pipeline.add_request(self._next_id, ids, config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            time_s = time.perf_counter() - start_s
            for handle, answer in zip(handles, answers, strict=True):
                if handle.can_read():
                    new = [token for output in handle.read().values() for token in output.generated_ids]
                    answer["token_ids"] += new
                    answer["times_s"].append(time_s)
                    answer["counts"].append(len(new))
                    answer["steps"] += 1
        return answers


if __name__ == "__main__":
    main()
