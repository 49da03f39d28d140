"""What ranks say of themselves, and when it is not one whole group that says it."""

from dataclasses import fields

import pytest

from drafthouse.v1 import sampling_pb2, shard_pb2
from router.config import parse_args
from router.group_info import GroupInfo, ShardGroupLost, agreed_info
from router.request import ModelInfo


def said(rank: int, *, world_size: int = 2, incarnation: int = 7, **others: int) -> shard_pb2.GetInfoResponse:
    return shard_pb2.GetInfoResponse(rank=rank, world_size=world_size, shard_incarnation=incarnation, **others)


def names(one: GroupInfo | ModelInfo) -> set[str]:
    return {field.name for field in fields(one)}


@pytest.mark.parametrize("blocks", [(90, 70), (70, 90)])
def test_there_are_as_many_blocks_as_the_rank_with_the_least_memory_has(blocks: tuple[int, int]) -> None:
    assert agreed_info([said(rank, num_blocks=number) for rank, number in enumerate(blocks)]).num_blocks == 70


def test_ranks_of_different_incarnations_are_no_group() -> None:
    with pytest.raises(ShardGroupLost, match="different incarnations"):
        agreed_info([said(0), said(1, incarnation=8)])
    assert agreed_info([said(0), said(1)]).shard_incarnation == 7


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([said(1), said(0)], "rank 0 of 2 is answered by rank 1 of 2"),
        ([said(0), said(0)], "rank 1 of 2 is answered by rank 0 of 2"),
        ([said(0, world_size=4), said(1, world_size=4)], "rank 0 of 2 is answered by rank 0 of 4"),
        ([said(0), said(1, world_size=3)], "rank 1 of 2 is answered by rank 1 of 3"),
    ],
)
def test_who_answers_at_a_socket_is_the_rank_it_is_for(infos: list[shard_pb2.GetInfoResponse], message: str) -> None:
    with pytest.raises(ShardGroupLost, match=message):
        agreed_info(infos)


def test_a_probability_that_nobody_set_is_none_and_one_of_zero_is_zero() -> None:
    assert agreed_info([said(0, world_size=1)]).draft_min_probability is None
    set_to_zero = shard_pb2.GetInfoResponse(rank=0, world_size=1, draft_min_probability=0)
    assert agreed_info([set_to_zero]).draft_min_probability == 0


def test_every_field_is_the_one_of_its_name() -> None:
    """All of them differ, so that none stands for another."""
    said_by_all = shard_pb2.GetInfoResponse(
        shard_incarnation=1,
        rank=0,
        world_size=1,
        model_type="llama",
        dtype="float16",
        device="a device",
        weights="quantized to int8",
        vocab_size=2,
        max_total_tokens=3,
        max_batch_size=4,
        max_batch_prefill_tokens=5,
        num_blocks=6,
        block_size=7,
        speculate=8,
        tree_size=9,
        max_batch_draft_tokens=10,
        heads="v2",
        speculation_methods=[sampling_pb2.SPECULATION_METHOD_NGRAM],
        draft_min_probability=0.25,
        kernels={"linear": "torch"},
    )
    assert {field.name for field, _ in said_by_all.ListFields()} | {"rank"} == set(
        said_by_all.DESCRIPTOR.fields_by_name
    )
    info = agreed_info([said_by_all])
    for name in names(info):
        given = getattr(said_by_all, name)
        assert getattr(info, name) == (("ngram",) if name == "speculation_methods" else given), name
    where = ["--model-path=m", "--shard-uds-path=s", "--run-dir=r"]
    config = parse_args(["--model-id=tiny", "--revision=r1", "--num-shard=11", *where])
    told = info.model_info(config, version="1.0")
    assert (told.model_id, told.revision, told.num_shards, told.version) == ("tiny", "r1", 11, "1.0")
    for name in names(told) & names(info):
        assert getattr(told, name) == getattr(info, name), name
