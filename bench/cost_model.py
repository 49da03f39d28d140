"""`python -m bench.cost_model`: what a step should cost on hardware that is not here, and where drafts stop paying.

Arithmetic on paper: docs/cost-model.md has the formulas, the sources of the constants, and how far a measurement on CPU
agrees. Nothing is measured here and no constant is fitted to a step. Units are seconds, bytes and multiply-adds counted
as two operations, unless a name says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from heapq import nlargest
from itertools import product
from math import ceil, log2, prod
from typing import NamedTuple

# Of the drafts that a proposer ranks below its first one: of what the first misses the second gets a sixth, the third a
# twelfth, the fourth an eighteenth (docs/speculation.md, head 0 of the default model: .31 .11 .07, here .31 .11 .06).
_SECOND = 1 / 6
_TREE_WIDTH = 8
# What a rank sends of each row when the sharded vocabulary agrees on a token, as shard/sampler.py does.
_CHOICE_BYTES = 32
# Of a value that is summed over the ranks.
_SUMMED_BYTES = 2


@dataclass(frozen=True, slots=True)
class Hardware:
    """One rank's share of a machine, and the links between ranks."""

    name: str
    read_bandwidth: float  # bytes/s from memory, what a long read achieves
    flops: float  # operations/s, what a large matrix product achieves
    memory: float  # bytes of a rank for weights, keys and values
    latency: float  # s, of an all-reduce, whatever it carries
    hop_latency: float  # s, from a rank to the next in its node
    node_hop_latency: float  # s, from a node to the next
    bandwidth: float  # bytes/s, each way, of a rank's links within the node
    node_bandwidth: float  # bytes/s, each way, of a rank's link to other nodes
    layer_overhead: float  # s, launches and gaps that no memory or matrix explains
    step_overhead: float  # s, layout, sampling, verification, broadcast and the host


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A llama-like decoder. `weight_bytes` and `kv_bytes` are of one value."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocab: int
    tied: bool = False
    weight_bytes: int = 2
    kv_bytes: int = 2

    @classmethod
    def smollm2_135m(cls) -> "ModelShape":
        """The default model."""
        return cls("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152, tied=True)

    @classmethod
    def llama_8b(cls) -> "ModelShape":
        return cls("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256)

    @classmethod
    def llama_70b(cls) -> "ModelShape":
        return cls("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256)

    def kv_heads_of(self, ranks: int) -> int:
        """Key-value heads of a rank: padded where they do not divide, replicated where they are fewer than ranks."""
        return ceil(self.kv_heads / ranks)

    def heads_of(self, ranks: int) -> int:
        """Query heads of a rank; replicas of a key-value head share those of its group."""
        replicas = max(1, ranks // self.kv_heads)
        return self.kv_heads_of(ranks) * ceil(self.heads // self.kv_heads / replicas)

    def weights_of(self, ranks: int) -> int:
        """Weights that a rank reads in a step: its layers and LM head; of the embedding it reads a few rows only."""
        attention = 2 * (self.heads_of(ranks) + self.kv_heads_of(ranks)) * self.head_dim * self.hidden
        layer = attention + 3 * self.hidden * ceil(self.width / ranks)
        return self.layers * layer + self.hidden * ceil(self.vocab / ranks)

    def kv_bytes_per_token(self, ranks: int) -> int:
        return 2 * self.layers * self.kv_heads_of(ranks) * self.head_dim * self.kv_bytes


class StepTime(NamedTuple):
    """Seconds of a step by what takes them."""

    matrices: float
    attention: float
    reduce: float
    overhead: float
    drafting: float

    @property
    def total(self) -> float:
        return sum(self)


def all_reduce_time(hardware: Hardware, num_bytes: float, *, ranks: int, nodes: int = 1) -> float:
    """A ring within each node and one across nodes, in which each rank carries its part of the bytes.

    With g ranks in each of m nodes: L + 2 (g - 1) a + 2 log2(m) c + 2 (g - 1) / g B / b + 2 (m - 1) / m (B / g) / b'.
    """
    if ranks == 1:
        return 0.0
    local = ranks // nodes
    latency = hardware.latency + 2 * (local - 1) * hardware.hop_latency + 2 * log2(nodes) * hardware.node_hop_latency
    within = 2 * (local - 1) / local * num_bytes / hardware.bandwidth
    across = 2 * (nodes - 1) / nodes * num_bytes / local / hardware.node_bandwidth
    return latency + within + across


def step_time(
    hardware: Hardware,
    model: ModelShape,
    *,
    ranks: int,
    nodes: int,
    sequences: int,
    rows: int,
    context: int,
    heads: int = 0,
) -> StepTime:
    """A step of `rows` rows in all, last tokens and drafts, for `sequences` sequences of `context` tokens each.

    Matrices and attention are each the slower of reading and arithmetic, a hard maximum: within a kernel the two
    overlap, and a smooth one would need a constant that could only be fitted. It is what a perfect kernel takes; a real
    one is slower, most where both are equal. `heads` Medusa heads of version 1 run on a row of each sequence.
    """

    def slower(num_bytes: float, operations: float) -> float:
        return max(num_bytes / hardware.read_bandwidth, operations / hardware.flops)

    exchange = partial(all_reduce_time, hardware, ranks=ranks, nodes=nodes)
    weights = model.weights_of(ranks)
    # Rows of a sequence share one pass over its keys and values.
    kv_bytes = sequences * context * model.kv_bytes_per_token(ranks)
    attention_flops = 4 * rows * context * model.heads_of(ranks) * model.head_dim * model.layers
    # Two sums a layer and one behind the sharded embedding; then the choice of tokens, and the decision of rank 0.
    reduce = (2 * model.layers + 1) * exchange(rows * model.hidden * _SUMMED_BYTES)
    reduce += 2 * exchange(rows * _CHOICE_BYTES)
    # A head is a square layer and a projection onto the vocabulary.
    head_weights = heads * model.hidden * (model.hidden + ceil(model.vocab / ranks))
    drafting = slower(head_weights * model.weight_bytes, 2 * sequences * head_weights)
    drafting += 2 * exchange(sequences * _CHOICE_BYTES) if heads else 0.0
    matrices = slower(weights * model.weight_bytes, 2 * rows * weights)
    overhead = model.layers * hardware.layer_overhead + hardware.step_overhead
    return StepTime(matrices, slower(kv_bytes, attention_flops), reduce, overhead, drafting)


class Speculation(NamedTuple):
    """What is drafted for each sequence: by a lookup, which is free, or by Medusa heads."""

    drafts: int
    tokens: float  # expected of a step, the one that needs no draft included
    heads: int = 0


def chain_tokens(p: float, drafts: int) -> float:
    """Expected tokens of a step that checks a chain, each draft right with probability p if the one before is."""
    return 1 + sum(p**depth for depth in range(1, drafts + 1))


def tree_tokens(p: float, nodes: int, *, depth: int = 4) -> float:
    """The same for the most probable `nodes` drafts, where a place's first candidate is right with probability p."""
    ranked = [p, *((1 - p) * _SECOND / rank for rank in range(1, _TREE_WIDTH))]
    # A path is never more probable than its beginning, so the most probable ones are a tree.
    paths = (prod(path) for length in range(1, depth + 1) for path in product(ranked, repeat=length))
    return 1 + sum(nlargest(nodes, paths))


def speedup(step: Callable[..., StepTime], speculation: Speculation, sequences: int) -> float:
    """Tokens per second with speculation over those without. `step` is `step_time` with all but its rows given."""
    plain = step(sequences=sequences, rows=sequences)
    checking = step(sequences=sequences, rows=sequences * (1 + speculation.drafts), heads=speculation.heads)
    return speculation.tokens * plain.total / checking.total


def break_even_sequences(step: Callable[..., StepTime], speculation: Speculation, *, limit: int = 4096) -> int | None:
    """The fewest sequences at which speculation is slower than none; None: it pays for all up to `limit`."""
    return next((n for n in range(1, limit + 1) if speedup(step, speculation, n) < 1), None)


def most_sequences(hardware: Hardware, model: ModelShape, *, ranks: int, context: float) -> int:
    """How many sequences of this length the memory holds beside the weights; 0: not even the weights fit."""
    embedding = 0 if model.tied else model.hidden * ceil(model.vocab / ranks)
    weights = (model.weights_of(ranks) + embedding) * model.weight_bytes
    return max(0, int((hardware.memory - weights) // (model.kv_bytes_per_token(ranks) * context)))


# In the order of the fields; docs/cost-model.md has the source of each figure. Those of GPUs are not measured here.
H100 = Hardware("H100 SXM", 3.0e12, 690e12, 72e9, 10e-6, 0.6e-6, 8e-6, 250e9, 46e9, 13e-6, 300e-6)
H100_ONE_SHOT = replace(H100, name="H100 SXM, one-shot all-reduce", latency=7e-6, hop_latency=0.0)
A100 = replace(H100, name="A100 SXM", read_bandwidth=1.83e12, flops=218e12, bandwidth=167e9)
# Measured 2026-11-24: two cores of a Zen 3 processor as one rank of two threads.
CPU = Hardware("2 cores", 31.8e9, 182e9, 24e9, 0, 0, 0, 1, 1, 6e-6, 0.82e-3)

_MODELS = (ModelShape.llama_8b(), ModelShape.llama_70b())
_GROUPS = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 2))
_BATCHES = (1, 8, 32, 128)
_SPECULATIONS = {f"chain {p}": Speculation(3, chain_tokens(p, 3)) for p in (0.6, 0.8)}
_SPECULATIONS |= {f"tree {p}": Speculation(16, tree_tokens(p, 16)) for p in (0.6, 0.8)}
_SPECULATIONS["chain 0.6, 3 heads"] = Speculation(3, chain_tokens(0.6, 3), heads=3)
_Row = list[object]


def _table(title: str, head: _Row, rows: list[_Row]) -> None:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    print("\n".join(["", title, "", lines[0], "|---" * len(head) + "|", *lines[1:]]))


def _print_gpus(hardware: Hardware, model: ModelShape) -> None:
    steps, checks, pays = (list[_Row]() for _ in range(3))
    for context, (ranks, nodes) in product((256, 1024, 8192), _GROUPS):
        if (room := most_sequences(hardware, model, ranks=ranks, context=context)) == 0:
            continue
        name = f"{nodes} x {ranks // nodes}" if nodes > 1 else ranks
        step = partial(step_time, hardware, model, ranks=ranks, nodes=nodes, context=context)
        plain = {batch: step(sequences=batch, rows=batch) for batch in _BATCHES if batch <= room}
        absent = ["–"] * (len(_BATCHES) - len(plain))
        times = [f"{time.total * 1e3:.2f} ({time.reduce / time.total:.0%})" for time in plain.values()]
        steps.append([context, name, *times, *absent, room])
        for rows in (4, 16, 64) if context == 1024 else ():
            costs = [step(sequences=batch, rows=batch * rows).total / time.total for batch, time in plain.items()]
            checks.append([name, rows, *(f"{cost:.2f}" for cost in costs), *absent])
        first = [break_even_sequences(step, speculation, limit=room) for speculation in _SPECULATIONS.values()]
        pays.append([context, name, *(batch or "all" for batch in first), room])
    title, batches = f"{model.name}, {hardware.name}", [f"batch {batch}" for batch in _BATCHES]
    _table(f"{title}: ms of a plain step (share of all-reduce)", ["context", "GPUs", *batches, "fit"], steps)
    _table(f"{title}, context 1024: so many rows a sequence, plain = 1", ["GPUs", "rows", *batches], checks)
    _table(f"{title}: first batch that does not pay", ["context", "GPUs", *_SPECULATIONS, "fit"], pays)


def _print_checks() -> None:
    """Beside what others published of one sequence, and what two cores do (docs/cost-model.md has the measurement)."""
    llama_2 = ModelShape("Llama-2-7B", 32, 4096, 32, 32, 128, 11008, 32000)
    figures = [(H100, _MODELS[0], 1, 158.3), (A100, _MODELS[0], 1, 93.9)]
    figures += [(A100, llama_2, ranks, tokens) for ranks, tokens in ((1, 104.9), (2, 169), (4, 254), (8, 328))]
    rows: list[_Row] = []
    for hardware, model, ranks, per_s in figures:
        time = step_time(hardware, model, ranks=ranks, nodes=1, sequences=1, rows=1, context=256)
        rows.append([hardware.name, model.name, ranks, f"{time.total * 1e3:.2f}", f"{1e3 / per_s:.2f}"])
    _table("Others at batch 1: ms a token", ["hardware", "model", "GPUs", "predicted", "published"], rows)
    rows, small = [], ModelShape.smollm2_135m()
    for batch, drafts in [*((1, n) for n in (0, 1, 2, 4, 8, 16, 32, 64)), *((n, 0) for n in (2, 4, 8, 16, 32))]:
        time = step_time(CPU, small, ranks=1, nodes=1, sequences=batch, rows=batch + drafts, context=300)
        parts = (time.matrices, time.attention, time.overhead, time.total)
        rows.append([f"{batch} + {drafts}", *(f"{part * 1e3:.1f}" for part in parts)])
    _table(f"{small.name}, two cores, context 300: ms", ["rows", "matrices", "attention", "overhead", "step"], rows)


if __name__ == "__main__":
    for shape in _MODELS:
        _print_gpus(H100, shape)
    _print_gpus(H100_ONE_SHOT, _MODELS[1])
    _print_checks()
