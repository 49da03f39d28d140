"""Whole steps of a model of a given shape with random weights: forward, choice, verification, commit, as the service
runs them, by the device's own clock.

Contexts of sequences that decode are made up. The first steps of a case are warm-up: the second captures it.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu.step_times import PromptStepTime, StepCase, StepTime
from shard.config import parse_args
from shard.cuda.kernels import capture_for
from shard.device_step import DeviceStep
from shard.distributed import TPGroup
from shard.kv_cache import KVCache
from shard.layers.quantize import Quantization
from shard.layers.sharded import ShardedModule
from shard.made_up import MadeUpSteps
from shard.model_config import ModelConfig
from shard.model_runner import ModelRunner
from shard.models import FAMILIES
from shard.models.decoder import Decoder
from shard.speculation import Proposal
from shard.speculation.drafter import SpeculationSizes
from shard.states import SequenceStates

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
_BLOCK_SIZE = 16
_WARM_UPS, _REPEATS = 4, 15
# Short prompts are captured in one of the first.
_PROMPT_WARM_UPS, _PROMPT_REPEATS = 8, 5


def time_steps(
    shape: dict[str, Any], cases: tuple[StepCase, ...], *, dtype: torch.dtype, device: torch.device
) -> Iterator[StepTime]:
    """A model for each kind of weights, one at a time."""
    for quantize in dict.fromkeys(case.quantize for case in cases):
        alike = tuple(case for case in cases if case.quantize == quantize)
        yield from _time_alike(ModelConfig.from_dict(shape), alike, quantize, dtype, device)


def _time_alike(
    config: ModelConfig,
    cases: tuple[StepCase, ...],
    quantize: Quantization | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[StepTime]:
    model, weight_bytes = _random_model(config, quantize, dtype=dtype, device=device)
    # Tokens that the steps of a case bring, and room for the drafts of one.
    room = _WARM_UPS + _REPEATS + 2 + max(case.drafts for case in cases)
    steps = _made_up_steps(
        config,
        model,
        num_blocks=max(case.batch * (-(-(case.context + room) // _BLOCK_SIZE) + 1) for case in cases),
        num_slots=max(case.batch for case in cases),
        max_step_rows=max(case.batch * (1 + case.drafts) for case in cases),
        max_total_tokens=max(case.context for case in cases) + room,
        tree_size=max(1, *(case.drafts for case in cases)),
        dtype=dtype,
        device=device,
    )
    token_bytes = KVCache.bytes_per_block(
        num_layers=config.num_layers,
        block_size=1,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
    )
    for case in cases:
        steps.enter(case.batch, context=case.context, room=room)
        times = _times(steps, [case.drafts] * case.batch)
        steps.forget()
        read_bytes = weight_bytes + case.batch * case.context * token_bytes
        yield StepTime(case, statistics.median(times[_WARM_UPS:]), read_bytes)


def time_prompt_steps(
    shape: dict[str, Any], lengths: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
) -> Iterator[PromptStepTime]:
    """Whole prompts of one sequence in one step each, on weights of 16 bits."""
    config = ModelConfig.from_dict(shape)
    model, weight_bytes = _random_model(config, None, dtype=dtype, device=device)
    steps = _made_up_steps(
        config,
        model,
        num_blocks=-(-max(lengths) // _BLOCK_SIZE) + 1,
        num_slots=1,
        max_step_rows=2,
        max_total_tokens=max(lengths) + 1,
        tree_size=1,
        dtype=dtype,
        device=device,
    )
    # The output projection is for the last row alone.
    head = config.vocab_size * config.hidden_size
    for length in lengths:
        times = []
        for _ in range(_PROMPT_WARM_UPS + _PROMPT_REPEATS):
            times.append(steps.prefill(context=0, length=length).duration_ns * 1e-9)
            steps.forget()
        operations = 2 * (weight_bytes // dtype.itemsize - head) * length
        yield PromptStepTime(length, statistics.median(times[_PROMPT_WARM_UPS:]), operations)


def _made_up_steps(
    config: ModelConfig,
    model: Decoder,
    *,
    num_blocks: int,
    num_slots: int,
    max_step_rows: int,
    max_total_tokens: int,
    tree_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> MadeUpSteps:
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=device,
        max_step_rows=max_step_rows,
    )
    sizes = SpeculationSizes(num_speculative_tokens=0, tree_size=tree_size, num_heads=0, tree_width=1)
    states = SequenceStates(
        num_slots=num_slots,
        max_total_tokens=max_total_tokens,
        tree_size=tree_size,
        block_size=_BLOCK_SIZE,
        device=device,
    )
    step = DeviceStep(
        model=model, vocab_size=config.vocab_size, cache=cache, states=states, group=TPGroup(), drafter=None
    )
    runner = ModelRunner(step, capture=capture_for(dtype, device))
    limits = parse_args(
        [
            *("--model-path=none", "--uds-path=none", "--run-dir=none", "--dtype=bfloat16", "--threads=1"),
            *(f"--max-total-tokens={max_total_tokens}", f"--block-size={_BLOCK_SIZE}"),
        ]
    )
    return MadeUpSteps(runner, limits, sizes=sizes)


def _times(steps: MadeUpSteps, drafts: list[int]) -> list[float]:
    """Seconds of each step, the next being launched before it is waited for, as the service does."""
    times, launched = [], steps.launch_decode(drafts, Proposal.NONE)
    for _ in range(_WARM_UPS + _REPEATS):
        following = steps.launch_decode(drafts, Proposal.NONE)
        times.append(launched().duration_ns * 1e-9)
        launched = following
    launched()
    return times


def _random_model(
    config: ModelConfig, quantize: Quantization | None, *, dtype: torch.dtype, device: torch.device
) -> tuple[Decoder, int]:
    """And how many bytes of it a step reads: of the embedding only some rows."""
    num_bytes = 0
    with torch.inference_mode():
        model = Decoder(config, FAMILIES[config.model_type], group=TPGroup(), dtype=dtype, device=device)
        layers = [layer for layer in model.modules() if isinstance(layer, ShardedModule)]
        for layer in layers:
            for name in layer.pieces:
                declared = layer.get_parameter(name)
                size = 1 if quantize and declared.dim() == 2 else declared.element_size()
                num_bytes += declared.numel() * size * (layer is not model.embed_tokens)
                layer.fill(name, torch.empty(declared.shape, dtype=dtype, device=device).normal_(std=0.02))
            layer.finish(quantize)
        model.finish()
    return model.eval(), num_bytes
