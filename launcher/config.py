"""What a flag is: its name, type, default and help, once. Command line, environment and help page are made from this.

Must not know how the children are started; `commands.py` turns a settled config into their command lines.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import click

from launcher.machine import Machine

# Drafts beyond this many cost more rows than any text pays back, and sizes of device buffers follow from it.
MAX_SPECULATE = 16
MAX_TREE_SIZE = 64
MAX_TREE_WIDTH = 32
# A Unix socket's path has at most 107 bytes on Linux (unix(7)); "-" and a rank of three digits follow the prefix.
MAX_UDS_PREFIX_BYTES = 107 - 4
# Positions a sequence may have when --max-total-tokens is unset and the model would allow more.
DEFAULT_MAX_TOTAL_TOKENS = 8192


class ConfigError(ValueError):
    """Flags that do not fit each other or this machine; the message names the flag."""


def _flag(help_text: str, *, default: Any = None, kind: Any = str, tgi: bool = False) -> Any:
    """A field of LauncherConfig; `kind` is a click type, or bool for a switch.

    `tgi`: text-generation-inference's launcher has it by the same name, with the same meaning, and so has its variable.
    """
    return field(default=default, metadata={"help": help_text, "kind": kind, "tgi": tgi})


class _Ahead(click.IntRange):
    """A number of tokens, or auto."""

    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


class _Real(click.FloatRange):
    """A finite number: NaN would pass every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_COUNT = click.IntRange(min=1)
_PORT = click.IntRange(min=1, max=65535)
_SECONDS = _Real(min=0.1, max=1e6)


@dataclass(frozen=True, slots=True)
class LauncherConfig:
    """Every flag. None means unset: `settled` or the children decide."""

    model_id: str | None = _flag(
        "Hub id, local folder or GGUF file of the model, or hub id or folder of Medusa heads, which name their model.  "
        "[default: SmolLM2-135M-Instruct with heads, installed with Drafthouse]",
        tgi=True,
    )
    revision: str | None = _flag("Branch, tag or commit of what --model-id names on the hub.", tgi=True)
    medusa: str | None = _flag("Hub id or folder of Medusa heads for the model.  [default: those it comes with]")
    medusa_revision: str | None = _flag("Branch, tag or commit of what --medusa names on the hub.")
    num_shard: int | None = _flag(
        "Number of processes the model is split over.  [default: visible GPUs, 1 without]", kind=_COUNT, tgi=True
    )
    speculate: int | Literal["auto"] | None = _flag(
        "Most tokens to draft ahead; 0 is off, auto as far as it pays, by all heads and up to 8 by lookup. Of Medusa "
        "heads the first so many are taken, and no more than there are. Fewer are drafted where more would take longer "
        "than they save. Output does not depend on it.  [default: one for each Medusa head, 0 without heads]",
        kind=_Ahead(0, MAX_SPECULATE),
        tgi=True,
    )
    speculation_method: str = _flag(
        "What drafts: lookup in the text so far, Medusa heads, or both; auto takes what there is.",
        default="auto",
        kind=click.Choice(["auto", "ngram", "medusa", "hybrid"]),
    )
    tree_size: int | None = _flag(
        "Most draft tokens of a sequence in one step, over all branches.  [default: with heads 16, on a GPU 32; "
        "else as --speculate]",
        kind=click.IntRange(1, MAX_TREE_SIZE),
    )
    tree_width: int | None = _flag(
        "Best tokens taken of each Medusa head; 1 makes a chain.  [default: 8]",
        kind=click.IntRange(1, MAX_TREE_WIDTH),
    )
    draft_min_probability: float | None = _flag(
        "Check every draft that is at least so likely right, at any load, whatever it costs; 0 checks all there are.  "
        "[default: what steps cost on this machine, measured at the start, decides]",
        kind=_Real(0, 1),
    )
    dtype: str = _flag(
        "Number format of weights and arithmetic.",
        default="bfloat16",
        kind=click.Choice(["bfloat16", "float16", "float32", "float64"]),
        tgi=True,
    )
    quantize: str | None = _flag(
        "Keep the matrices in 8 bits, as integers or (on a GPU of compute capability 8.9 or more) as floating-point "
        "numbers, with one scale for each output: half the memory, and (measured on CPU) a third less time where "
        "reading them is what a step takes.  "
        "Medusa heads stay as they are.  [default: not at all]",
        kind=click.Choice(["int8", "fp8"]),
        tgi=True,
    )
    kv_cache_dtype: str | None = _flag(
        "Keep keys and values in 8 bits: twice the tokens in the same memory.  On a GPU of compute capability 8.9 or "
        "more only.  [default: as --dtype]",
        kind=click.Choice(["fp8"]),
        tgi=True,
    )
    max_total_tokens: int | None = _flag(
        "Most tokens of one sequence, prompt and answer.  "
        f"[default: what the model allows, at most {DEFAULT_MAX_TOTAL_TOKENS}]",
        kind=click.IntRange(min=2),
        tgi=True,
    )
    max_input_tokens: int | None = _flag(
        "Most tokens of a prompt.  [default: --max-total-tokens less 1]", kind=_COUNT, tgi=True
    )
    max_batch_prefill_tokens: int | None = _flag(
        "Most tokens in one step, those of prompts and one of each sequence that goes on, drafts apart; others wait "
        "that long.  At least --max-batch-size and --block-size together.  [default: 4096 with a GPU, 256 without, or "
        "that least]",
        kind=_COUNT,
        tgi=True,
    )
    max_batch_size: int | None = _flag(
        "Most sequences at once, as far as --max-concurrent-requests lets them in.  [default: 256 with a GPU, 32 "
        "without]",
        kind=_COUNT,
        tgi=True,
    )
    max_batch_draft_tokens: int | None = _flag(
        "Most draft tokens checked in one step, over all sequences.  [default: 256 with a GPU, 96 without]", kind=_COUNT
    )
    max_batch_total_tokens: int | None = _flag(
        "Tokens that the KV cache holds.  [default: what the memory allows, at most for --max-batch-size sequences of "
        "--max-total-tokens; on a CPU a GiB for each shard, or one such sequence if that is more]",
        kind=_COUNT,
        tgi=True,
    )
    block_size: int = _flag("Tokens in a block of the KV cache.", default=16, kind=_COUNT)
    cuda_memory_fraction: float = _flag(
        "Share of a GPU's memory to use.", default=0.9, kind=_Real(min=0, max=1, min_open=True), tgi=True
    )
    max_concurrent_requests: int = _flag(
        "Most requests running and waiting, each choice counted; more are refused.", default=128, kind=_COUNT, tgi=True
    )
    max_stop_sequences: int = _flag("Most stop strings of a request.", default=4, kind=click.IntRange(min=0), tgi=True)
    payload_limit: int = _flag("Largest request, in bytes.", default=2_000_000, kind=_COUNT, tgi=True)
    # Not `tgi`: container runtimes set HOSTNAME to the container's name, which is no address that a user chose.
    hostname: str = _flag("Address to listen on.", default="0.0.0.0")
    port: int = _flag("Port of HTTP: health and metrics.", default=3000, kind=_PORT, tgi=True)
    grpc_port: int = _flag("Port of the gRPC service.", default=3001, kind=_PORT)
    shard_uds_path: str | None = _flag(
        "Prefix of the shards' Unix sockets; the rank is appended. One launcher at a time has it.  "
        "[default: in a private temporary folder]",
        tgi=True,
    )
    threads: int | None = _flag(
        "Threads of one shard.  [default: its share of the cores; the router gets one if two are left for each]",
        kind=_COUNT,
    )
    collective_timeout: float = _flag(
        "Seconds after which a shard gives up on a step, or on waiting for the others.", default=60.0, kind=_SECONDS
    )
    step_timeout: float = _flag(
        "Seconds after which the router gives up on a step and its shards.", default=120.0, kind=_SECONDS
    )
    graceful_termination_timeout: float = _flag(
        "Seconds that open requests have to finish after SIGTERM.", default=90.0, kind=_Real(min=0), tgi=True
    )
    # Not `tgi`: the hub's client reads HUGGINGFACE_HUB_CACHE by itself, after HF_HUB_CACHE.
    huggingface_hub_cache: str | None = _flag("Where models from the hub are kept.  [default: the hub client's own]")
    disable_prefix_caching: bool = _flag("Compute every prompt anew.", default=False, kind=bool)
    json_output: bool = _flag("Log one JSON object per line.", default=False, kind=bool, tgi=True)
    log_level: str = _flag(
        "What to log.", default="info", kind=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False)
    )

    @property
    def drafts_with_heads(self) -> bool:
        """Whether Medusa heads have anything to do."""
        return self.speculate != 0 and self.speculation_method != "ngram"


def flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def settled(config: LauncherConfig, machine: Machine) -> LauncherConfig:
    """`config` with everything filled in that follows from the machine. Raises ConfigError where it does not fit."""
    num_shard = config.num_shard or max(1, machine.num_gpus)
    max_batch_size = config.max_batch_size or (256 if machine.num_gpus else 32)
    max_batch_draft_tokens = config.max_batch_draft_tokens or (256 if machine.num_gpus else 96)
    # Every sequence may decode in one step, and a prompt still gets on.
    least_prefill_tokens = max_batch_size + config.block_size
    filled = replace(
        config,
        num_shard=num_shard,
        threads=config.threads or machine.threads_per_shard(num_shard),
        max_batch_prefill_tokens=config.max_batch_prefill_tokens
        or max(least_prefill_tokens, 4096 if machine.num_gpus else 256),
        max_batch_size=max_batch_size,
        max_batch_draft_tokens=max_batch_draft_tokens,
    )
    _check(filled, machine)
    return filled


def with_model_length(config: LauncherConfig, max_positions: int | None) -> LauncherConfig:
    """`config` with --max-total-tokens settled. `max_positions`: of the model, None where its config does not say."""
    wanted = config.max_total_tokens
    if wanted is None:
        wanted = min(max_positions or DEFAULT_MAX_TOTAL_TOKENS, DEFAULT_MAX_TOTAL_TOKENS)
        if config.max_batch_total_tokens is not None:
            wanted = min(wanted, config.max_batch_total_tokens)
    if wanted < 2:
        raise ConfigError(
            "--max-batch-total-tokens and the model's positions must have room for a prompt and an answer: 2"
        )
    if max_positions is not None and wanted > max_positions:
        raise ConfigError(
            f"--max-total-tokens {wanted} is more than the {max_positions} positions of the model "
            "(max_position_embeddings and rope scaling in its config.json); lower it"
        )
    if config.max_input_tokens is not None and config.max_input_tokens >= wanted:
        raise ConfigError(
            f"--max-input-tokens {config.max_input_tokens} must be below --max-total-tokens {wanted}: "
            "an answer has at least one token"
        )
    if config.max_batch_total_tokens is not None and config.max_batch_total_tokens < wanted:
        raise ConfigError(
            f"--max-batch-total-tokens {config.max_batch_total_tokens} is below --max-total-tokens {wanted}: "
            "one longest sequence would not fit; raise the first or lower the second"
        )
    return replace(config, max_total_tokens=wanted)


def _check(config: LauncherConfig, machine: Machine) -> None:
    # `settled` has filled them.
    assert config.num_shard is not None
    assert config.max_batch_draft_tokens is not None
    if machine.num_gpus and config.num_shard > machine.num_gpus:
        raise ConfigError(f"--num-shard {config.num_shard} is more than the {machine.num_gpus} GPUs that are visible")
    if config.port == config.grpc_port:
        raise ConfigError(f"--port and --grpc-port are both {config.port}")
    if config.medusa_revision is not None and config.medusa is None:
        raise ConfigError("--medusa-revision needs --medusa; heads that --model-id names have --revision")
    if config.speculation_method == "ngram" and config.speculate is None:
        raise ConfigError("--speculation-method ngram needs --speculate: without heads nothing says how far to draft")
    ahead = None if config.speculate == "auto" else config.speculate
    for name, drafts in (("--speculate", ahead), ("--tree-size", config.tree_size)):
        if (drafts or 0) > config.max_batch_draft_tokens:
            raise ConfigError(f"{name} {drafts} is more than --max-batch-draft-tokens {config.max_batch_draft_tokens}")
    if config.step_timeout < config.collective_timeout:
        raise ConfigError(
            f"--step-timeout {config.step_timeout:g} is below --collective-timeout {config.collective_timeout:g}: "
            "a shard must give up before the router does"
        )
    if config.shard_uds_path is not None:
        if len(config.shard_uds_path.encode()) > MAX_UDS_PREFIX_BYTES:
            raise ConfigError(
                f"--shard-uds-path is longer than the {MAX_UDS_PREFIX_BYTES} bytes a socket's path allows"
            )
        folder = Path(config.shard_uds_path).absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"--shard-uds-path {config.shard_uds_path}: there is no folder {folder}")
