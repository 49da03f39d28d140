"""What the shards say of themselves, whether they agree, and what follows for requests and for who asks."""

from dataclasses import dataclass

from drafthouse.v1 import shard_pb2
from router.budget import BudgetConfig
from router.config import RouterConfig
from router.request import MOST_CHOICES, Limits, ModelInfo
from router.wire import methods_from_proto


class ShardGroupLost(Exception):
    """The session is over: a rank is gone, does not answer, or does not agree with the others."""


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What every rank said of itself, where they must agree."""

    shard_incarnation: int
    model_type: str
    dtype: str
    device: str
    weights: str
    vocab_size: int
    max_total_tokens: int
    max_batch_size: int
    max_batch_prefill_tokens: int
    num_blocks: int
    block_size: int
    speculate: int
    tree_size: int
    max_batch_draft_tokens: int
    heads: str
    speculation_methods: tuple[str, ...]
    draft_min_probability: float | None
    kernels: dict[str, str]

    @property
    def budget(self) -> BudgetConfig:
        return BudgetConfig(self.speculate, self.tree_size, self.speculation_methods, self.draft_min_probability)

    @property
    def speculation(self) -> str:
        """What is drafted, for the log."""
        if not self.speculate:
            return "no speculation"
        heads = f" (Medusa {self.heads})" if self.heads else ""
        return (
            f"at most {self.tree_size} drafts up to {self.speculate} tokens ahead by "
            f"{', '.join(self.speculation_methods)}{heads}"
        )

    def limits(self, config: RouterConfig) -> Limits:
        """What a request may ask for. A prompt leaves room for one token at least; each choice counts as a request."""
        most = self.max_total_tokens - 1
        return Limits(
            max_total_tokens=self.max_total_tokens,
            max_input_tokens=min(config.max_input_tokens or most, most),
            max_speculative_tokens=self.speculate,
            vocab_size=self.vocab_size,
            max_stop_sequences=config.max_stop_sequences,
            max_choices=min(MOST_CHOICES, config.max_concurrent_requests),
        )

    def model_info(self, config: RouterConfig, *, version: str) -> ModelInfo:
        return ModelInfo(
            model_id=config.model_id,
            revision=config.revision,
            weights=self.weights,
            model_type=self.model_type,
            dtype=self.dtype,
            device=self.device,
            num_shards=config.num_shard,
            max_total_tokens=self.max_total_tokens,
            max_batch_size=self.max_batch_size,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            speculate=self.speculate,
            tree_size=self.tree_size,
            heads=self.heads,
            version=version,
            speculation_methods=self.speculation_methods,
            kernels=self.kernels,
        )


def agreed_info(infos: list[shard_pb2.GetInfoResponse]) -> GroupInfo:
    """ShardGroupLost where the answers, in rank order, are not those of one whole group."""
    for rank, info in enumerate(infos):
        if (info.rank, info.world_size) != (rank, len(infos)):
            raise ShardGroupLost(
                f"the socket of rank {rank} of {len(infos)} is answered by rank {info.rank} of {info.world_size}"
            )
    if len({info.shard_incarnation for info in infos}) > 1:
        raise ShardGroupLost("ranks of different incarnations answer; the group is still restarting")
    first = infos[0]
    return GroupInfo(
        shard_incarnation=first.shard_incarnation,
        model_type=first.model_type,
        dtype=first.dtype,
        device=first.device,
        weights=first.weights,
        vocab_size=first.vocab_size,
        max_total_tokens=first.max_total_tokens,
        max_batch_size=first.max_batch_size,
        max_batch_prefill_tokens=first.max_batch_prefill_tokens,
        # Ids are shared by all ranks, so the one with the least memory counts.
        num_blocks=min(info.num_blocks for info in infos),
        block_size=first.block_size,
        speculate=first.speculate,
        tree_size=first.tree_size,
        max_batch_draft_tokens=first.max_batch_draft_tokens,
        heads=first.heads,
        speculation_methods=methods_from_proto(first.speculation_methods),
        draft_min_probability=first.draft_min_probability if first.HasField("draft_min_probability") else None,
        kernels=dict(first.kernels),
    )
