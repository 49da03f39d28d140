"""The parts of a step on the host are router's and shard's own, put together."""

import pytest

from bench.host import measure


@pytest.mark.parametrize("drafts", [0, 3])
def test_every_part_of_a_step_is_measured(drafts: int) -> None:
    found = measure(2, drafts, num_steps=4)
    assert len(found) == 9
    assert all(us > 0 for us in found.values())
