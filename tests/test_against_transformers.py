"""The service's tokens against transformers, in float32 on the same weights.

float32 sums differ between shapes, so equality is asked for only where no decision was near a tie: prompts are drawn
until one has no decision within the margin (see the design), then every token must be equal. The reference model, its
filters and its log-softmax are transformers'; only the noise is ours, because the noise is what a seed means.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from router.request import GenerationRequest
from router.sequence import SamplingParams
from shard.gumbel import gumbel
from tests.checkpoints import make_checkpoint
from tests.engines import collect, generation_request, run, service
from tests.shard_processes import ShardProcesses

# Small, so that pairs of tokens recur and there are drafts.
VOCABULARY = 48
MIN_MARGIN = 1e-3
NEW_TOKENS = 48
# Each token of a filtered run has a whole vocabulary of chances to lie near a cut.
NEW_FILTERED_TOKENS = 16
MAX_DRAWS = 300
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=11),
    SamplingParams(),
    SamplingParams(temperature=1.2, top_k=9, seed=12),
    SamplingParams(temperature=0.9, top_p=0.85, seed=2**64 - 13),
    SamplingParams(temperature=1.1, min_p=0.05, seed=14),
]


class Reference:
    """Teacher-forced decisions of a transformers model, with how near each was to another."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.inference_mode()
    def decide(self, token_ids: list[int], sampling: SamplingParams) -> tuple[int, float, torch.Tensor]:
        """Next token, margin of the decision, log-probabilities."""
        logits = self.model(torch.tensor([token_ids])).logits[0, -1].float()
        logprobs = logits.log_softmax(-1)
        scores, margin = logits, torch.inf
        if sampling.temperature:
            scores = logits / sampling.temperature
            kept, margin = self._filter(scores, sampling)
            seed = torch.tensor(sampling.seed - (sampling.seed >> 63 << 64))
            noise = gumbel(seed, torch.tensor(len(token_ids)), torch.arange(len(logits)), torch.float32)
            scores = torch.where(kept, scores + noise, -torch.inf)
        best = scores.topk(2)
        return int(best.indices[0]), min(margin, float(best.values[0] - best.values[1])), logprobs

    def _filter(self, scores: torch.Tensor, sampling: SamplingParams) -> tuple[torch.Tensor, float]:
        """Which tokens survive, and the distance of the nearest one to a cut."""
        filtered, margin = scores[None], float("inf")
        if sampling.top_k:
            values = filtered[0].sort(descending=True).values
            margin = min(margin, float(values[sampling.top_k - 1] - values[sampling.top_k]))
            filtered = TopKLogitsWarper(sampling.top_k)(None, filtered)
        if sampling.top_p < 1:
            mass = filtered[0].softmax(-1).sort(descending=True).values.cumsum(-1)
            margin = min(margin, float((mass - sampling.top_p).abs().min()))
            filtered = TopPLogitsWarper(sampling.top_p)(None, filtered)
        if sampling.min_p:
            probabilities = filtered[0].softmax(-1)
            cut = sampling.min_p * probabilities.max()
            margin = min(margin, float((probabilities / cut).log().abs().min()))
            filtered = MinPLogitsWarper(sampling.min_p)(None, filtered)
        return filtered[0] > -torch.inf, margin

    def generate(self, request: GenerationRequest) -> tuple[list[int], list[float], float]:
        """Tokens, their log-probabilities, and the smallest margin; cut short where it is too small."""
        tokens, values, smallest = list(request.prompt_token_ids), [], float("inf")
        for _ in range(request.max_new_tokens):
            token, margin, logprobs = self.decide(tokens, request.sampling)
            values.append(float(logprobs[token]))
            smallest = min(smallest, margin)
            tokens.append(token)
            if smallest < MIN_MARGIN:
                break
        return tokens[len(request.prompt_token_ids) :], values, smallest


@pytest.mark.parametrize(
    ("family", "seed", "overrides"),
    [
        ("llama", 0, {"tie_word_embeddings": True}),
        ("llama", 1, {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", 2, {}),
        ("mistral", 3, {"sliding_window": 12}),
        ("mixtral", 4, {"num_local_experts": 4}),
        ("qwen2", 5, {"head_dim": 8}),
        ("gemma", 6, {"tie_word_embeddings": True}),
        ("gemma2", 7, {"sliding_window": 12, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0}),
        ("gemma3_text", 8, {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_tokens_and_logprobs_equal_transformers(
    family: str, seed: int, overrides: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", family, vocab=VOCABULARY, seed=seed, **overrides)
    reference = Reference(checkpoint)
    generator = torch.Generator().manual_seed(seed)
    requests, expected = [], []
    for index, sampling in enumerate(SAMPLINGS):
        is_filtered = sampling.top_k or sampling.top_p < 1 or sampling.min_p
        new = NEW_FILTERED_TOKENS if is_filtered else NEW_TOKENS
        for _ in range(MAX_DRAWS):
            part = torch.randint(3, VOCABULARY, (5 + 4 * index,), generator=generator).tolist()
            request = generation_request(part * 2, new=new, k=index % 3 + 1, sampling=sampling, logprobs=True)
            run_of_reference = reference.generate(request)
            if run_of_reference[2] >= MIN_MARGIN:
                break
        requests.append(request)
        expected.append(run_of_reference)
    assert min(margin for _, _, margin in expected) >= MIN_MARGIN
    assert len({token for tokens, _, _ in expected for token in tokens}) >= 30

    async def scenario() -> None:
        async with service(tmp_path) as s:
            await s.ready(60)
            got = await asyncio.gather(*(collect(s.engine.generate(request)) for request in requests))
            for outputs, (tokens, logprobs, _) in zip(got, expected, strict=True):
                assert [token for output in outputs for token in output.token_ids] == tokens
                assert [v for output in outputs for v in output.logprobs] == pytest.approx(logprobs, abs=2e-3)
            assert s.total("drafthouse_speculation_drafted_tokens_total") > 0

    with ShardProcesses(tmp_path, checkpoint, dtype="float32", speculate=3, max_batch_size=8):
        run(scenario, timeout_s=120)
