"""Owns divisibility: which rows of a full matrix a rank holds, and how many zero rows make all ranks alike.

Any model runs on any number of ranks. Ranks hold equal shapes, so what does not divide is padded with zeros, and
key-value heads that are fewer than ranks are replicated. Knows nothing of tensors, names or files.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `start:stop` of the full tensor, followed by zero rows up to `size`."""

    start: int
    stop: int
    size: int

    def scaled(self, factor: int) -> "Slice":
        """The same cut where each unit (a head, say) is `factor` rows."""
        return Slice(self.start * factor, self.stop * factor, self.size * factor)


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """The heads of one rank: local query heads j*heads_per_kv .. (j+1)*heads_per_kv read local key-value head j."""

    q: Slice
    kv: Slice

    @property
    def heads_per_kv(self) -> int:
        return self.q.size // self.kv.size


def whole(total: int) -> Slice:
    """Everything, on every rank."""
    return Slice(0, total, total)


def split(total: int, *, parts: int, index: int) -> Slice:
    """Cut `total` rows in runs of ceil(total / parts); the last ranks may hold fewer real rows, or none."""
    size = -(-total // parts)
    return Slice(min(index * size, total), min((index + 1) * size, total), size)


def split_heads(num_heads: int, num_kv_heads: int, *, parts: int, index: int) -> HeadSplit:
    """The heads of rank `index` of `parts`; a query head always sits with its key-value head.

    With at least as many key-value heads as ranks, whole groups are split and padded with zero groups. With fewer,
    each key-value head is replicated over `parts // num_kv_heads` ranks which divide the query heads of its group;
    ranks that remain are idle (zero heads only).
    """
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} attention heads cannot be grouped over {num_kv_heads} key-value heads")
    group = num_heads // num_kv_heads
    if num_kv_heads >= parts:
        kv = split(num_kv_heads, parts=parts, index=index)
        return HeadSplit(q=kv.scaled(group), kv=kv)
    replicas = parts // num_kv_heads
    head, replica = divmod(index, replicas)
    share = split(group, parts=replicas, index=replica)
    if head >= num_kv_heads:
        return HeadSplit(q=Slice(0, 0, share.size), kv=Slice(0, 0, 1))
    first = head * group
    return HeadSplit(q=Slice(first + share.start, first + share.stop, share.size), kv=Slice(head, head + 1, 1))
