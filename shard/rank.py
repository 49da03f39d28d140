"""Builds one rank out of its configuration: group, model, cache, runner; and says what it is.

The order matters: settings and files are checked before the group forms, so that an error is said once and at once.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from drafthouse.v1 import shard_pb2
from shard.captured_steps import CAPTURED_AT, Capture
from shard.config import ConfigError, ShardConfig
from shard.cuda.kernels import capture_for, has_fp8
from shard.device_step import DeviceStep
from shard.distributed import TPGroup
from shard.kv_cache import KVCache
from shard.largest_steps import run_largest
from shard.made_up import MadeUpSteps
from shard.medusa import MedusaHeads, load_heads
from shard.memory import StepBytes, available_bytes, kept_bytes, least_free_bytes, num_kv_blocks, peak_bytes
from shard.model_config import ModelConfig
from shard.model_runner import ModelRunner
from shard.models import load_model
from shard.models.decoder import Decoder
from shard.plan import StepCost
from shard.speculation_setup import build_drafter, proposals_of, speculation_methods, speculation_sizes
from shard.states import SequenceStates
from shard.warmup import warm_up
from shard.wire import methods_to_proto

log = logging.getLogger(__name__)


class WarmUp(Protocol):
    """Calls `on_step` where each of its steps begins."""

    def __call__(self, *, on_step: Callable[[], None] = ...) -> list[StepCost]: ...


@dataclass(frozen=True, slots=True)
class Rank:
    group: TPGroup
    runner: ModelRunner
    info: shard_pb2.GetInfoResponse
    # Measures what steps cost; see shard.warmup.
    warm_up: WarmUp


def build_rank(config: ShardConfig) -> Rank:
    """Raises ConfigError, CheckpointError or ValueError for what a restart cannot mend."""
    torch.set_num_threads(config.threads)
    model_config = ModelConfig.from_folder(config.model_path)
    if config.max_total_tokens > model_config.max_positions:
        raise ConfigError(
            f"--max-total-tokens {config.max_total_tokens} is more than the {model_config.max_positions} positions of "
            "the model (max_position_embeddings and rope scaling in its config.json); lower it"
        )
    device = _device(config)
    dtype: torch.dtype = getattr(torch, config.dtype)
    for flag, value in (("--quantize", config.quantize), ("--kv-cache-dtype", config.kv_cache_dtype)):
        if value == "fp8" and not has_fp8(dtype, device):
            raise ConfigError(
                f"{flag} fp8 needs a GPU of compute capability 8.9 or more, Triton, and a --dtype of at most 32 bits"
            )
    group = TPGroup.init("nccl" if device.type == "cuda" else "gloo", config.collective_timeout)
    start = time.monotonic()
    model = load_model(
        model_config,
        config.model_path,
        group=group,
        dtype=dtype,
        device=device,
        quantize=config.quantize,
        progress=_Progress(),
    )
    log.info("weights loaded in %.1f s", time.monotonic() - start)

    heads = _load_heads(config, model, group, device)
    sizes = speculation_sizes(config, num_heads=heads.num_heads if heads else 0, device=device)
    methods = speculation_methods(config, sizes)

    states = SequenceStates(
        num_slots=config.max_batch_size,
        max_total_tokens=config.max_total_tokens,
        tree_size=sizes.tree_size,
        block_size=config.block_size,
        device=device,
    )
    drafter = build_drafter(
        config,
        sizes,
        methods,
        figures=heads.figures if heads else None,
        num_slots=states.spare_slot + 1,
        device=device,
    )
    step_with = partial(
        DeviceStep,
        model=model,
        vocab_size=model_config.vocab_size,
        states=states,
        group=group,
        drafter=drafter,
        heads=heads,
    )

    def new_capture(least_free: int = 0, most_shared: int = 0) -> Capture | None:
        """A memory of its own for each runner: it ends with the last of its graphs."""
        if model.looks_at_values:
            return None
        return capture_for(dtype, device, least_free=least_free, most_shared=most_shared)

    def new_runner(cache: KVCache, capture: Capture | None) -> ModelRunner:
        return ModelRunner(step_with(cache=cache), capture=capture, most_chunk_rows=config.max_batch_prefill_tokens)

    def measure_largest(cache: KVCache) -> StepBytes:
        def run(times: int, capture: Capture | None) -> ModelRunner:
            runner = new_runner(cache, capture)
            run_largest(MadeUpSteps(runner, config, sizes=sizes), config, sizes, proposals_of(methods), times=times)
            return runner

        peak, capture = peak_bytes(device, lambda: run(1, None)), new_capture()
        return StepBytes(peak, kept_bytes(device, lambda: run(CAPTURED_AT, capture)) if capture else 0)

    cache, largest = _make_cache(
        config,
        model_config,
        num_kv_heads=model.num_kv_heads,
        device=device,
        num_ranks=group.size,
        measure_largest=measure_largest,
    )
    least_free = least_free_bytes(config, device=device, largest=largest) if device.type == "cuda" else 0
    capture = new_capture(least_free, largest.captured)
    runner = new_runner(cache, capture)
    info = shard_pb2.GetInfoResponse(
        shard_incarnation=_draw_incarnation(group, device),
        rank=group.rank,
        world_size=group.size,
        model_type=model_config.model_type,
        dtype=config.dtype,
        device=str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu",
        vocab_size=model_config.vocab_size,
        max_total_tokens=config.max_total_tokens,
        max_batch_size=config.max_batch_size,
        max_batch_prefill_tokens=config.max_batch_prefill_tokens,
        num_blocks=cache.num_blocks,
        block_size=config.block_size,
        speculate=sizes.num_speculative_tokens,
        tree_size=sizes.tree_size,
        max_batch_draft_tokens=config.max_batch_draft_tokens,
        speculation_methods=methods_to_proto(methods),
        heads=heads.description if heads else "",
        kernels=model.kernels
        | ({"steps": "cuda-graphs"} if capture else {})
        | ({"collectives": group.collectives} if group.size > 1 else {}),
        weights=", ".join(
            filter(
                None,
                [
                    config.weights_note,
                    config.quantize and f"quantized to {config.quantize}",
                    config.kv_cache_dtype and f"keys and values in {config.kv_cache_dtype}",
                ],
            )
        ),
        draft_min_probability=config.draft_min_probability,
    )
    measure = partial(warm_up, runner, config, sizes=sizes, proposals=proposals_of(methods))
    return Rank(group, runner, info, measure)


def _device(config: ShardConfig) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if config.num_gpus:
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        raise ConfigError(
            f"the driver shows {config.num_gpus} GPU{'s' if config.num_gpus != 1 else ''}, but this torch, built for "
            f"{built_for}, cannot use them; install one built for CUDA, update the driver, or give the container its "
            "GPUs; to compute on the CPU, hide them with CUDA_VISIBLE_DEVICES=''"
        )
    return torch.device("cpu")


def _load_heads(config: ShardConfig, model: Decoder, group: TPGroup, device: torch.device) -> MedusaHeads | None:
    if config.speculate == 0 or config.speculation_method == "ngram":
        return None
    path = config.medusa_path or config.model_path
    heads = load_heads(
        model,
        path=path,
        base_path=config.model_path,
        group=group,
        dtype=getattr(torch, config.dtype),
        device=device,
        num_heads=None if config.speculate == "auto" else config.speculate,
        progress=_Progress(),
    )
    if heads is not None:
        log.info("Medusa heads of %s: %s", path, heads.description)
    elif config.medusa_path is not None:
        raise ConfigError(f"--medusa-path {path} holds no Medusa heads")
    elif config.speculation_method != "auto":
        raise ConfigError(f"--speculation-method {config.speculation_method} needs Medusa heads; {path} has none")
    return heads


def _make_cache(
    config: ShardConfig,
    model: ModelConfig,
    *,
    num_kv_heads: int,
    device: torch.device,
    num_ranks: int,
    measure_largest: Callable[[KVCache], StepBytes],
) -> tuple[KVCache, StepBytes]:
    """As large as the memory allows beside the largest steps, and what those take."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    page_dtype = torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype
    bytes_per_block = KVCache.bytes_per_block(
        num_layers=model.num_layers,
        block_size=config.block_size,
        num_kv_heads=num_kv_heads,
        head_dim=model.head_dim,
        dtype=page_dtype,
    )
    cache_of = partial(
        KVCache,
        num_layers=model.num_layers,
        block_size=config.block_size,
        num_kv_heads=num_kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        device=device,
        max_step_rows=config.max_batch_size + config.max_batch_draft_tokens,
        page_dtype=page_dtype,
    )
    largest, step_bytes = StepBytes(), 0
    if device.type == "cuda":
        # Sequences share the few blocks that there are.
        small = cache_of(num_blocks=-(-config.max_total_tokens // config.block_size))
        largest, step_bytes = measure_largest(small), small.step_bytes
        del small
    available = available_bytes(config, device=device, ranks_on_host=num_ranks, largest=largest) - step_bytes
    num_blocks = num_kv_blocks(config, bytes_per_block=bytes_per_block, available=available, device=device)
    if device.type == "cuda":
        log.info(
            "memory: %.2f GB for the largest steps, %.2f more where they are captured, %.2f GB of %.2f GB left for "
            "%d KV blocks",
            largest.peak * 1e-9,
            largest.captured * 1e-9,
            num_blocks * bytes_per_block * 1e-9,
            available * 1e-9,
            num_blocks,
        )
    try:
        return cache_of(num_blocks=num_blocks), largest
    except (OSError, OverflowError) as error:
        # On CPU, where memory is only reserved.
        raise ConfigError(
            f"there is no memory for keys and values of {num_blocks * config.block_size} tokens ({error}); lower "
            "--max-batch-total-tokens"
        ) from error


def _draw_incarnation(group: TPGroup, device: torch.device) -> int:
    return int(group.broadcast(torch.tensor([secrets.randbits(62)], device=device)).item())


class _Progress:
    """Says how far loading is, at most once a second."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + 1

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + 1
            log.info("loading weights: %.2f of %.2f GB", done / 1e9, total / 1e9)
