"""Memory in huge pages is ordinary memory but for its pages."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.cpu import huge_pages
from shard.cpu.huge_pages import Arena


def test_zeros_are_zeros_that_can_be_written() -> None:
    out = huge_pages.zeros((3, 5, 7), torch.bfloat16)
    assert torch.equal(out, torch.zeros(3, 5, 7, dtype=torch.bfloat16))
    out += 1
    assert out.sum() == 105


@given(sizes=st.lists(st.integers(0, 1 << 20), max_size=8), seed=st.integers(0, 99))
def test_an_arena_keeps_what_it_is_given_apart(sizes: list[int], seed: int) -> None:
    """Some larger than a chunk, some that do not fit what is left of one."""
    generator, arena = torch.Generator().manual_seed(seed), Arena()
    given_ = [torch.randint(-99, 99, (17, size // 17), dtype=torch.int8, generator=generator) for size in sizes]
    given_.append(torch.randn(5, 9, generator=generator).bfloat16().T)
    given_.append(torch.zeros((huge_pages._CHUNK_BYTES + 1,), dtype=torch.uint8) + seed)
    held = [arena.hold(tensor) for tensor in given_]
    for tensor in held:
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(held, given_, strict=True))
