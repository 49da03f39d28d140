from typing import Any

import pytest

from launcher.config import ConfigError, LauncherConfig, settled, with_model_length
from launcher.machine import Machine

CPU = Machine(num_gpus=0, num_cores=8)


def test_shards_default_to_the_visible_gpus() -> None:
    assert settled(LauncherConfig(), Machine(num_gpus=4, num_cores=64)).num_shard == 4
    assert settled(LauncherConfig(), CPU).num_shard == 1


def test_more_shards_than_gpus_are_refused_but_not_without_any_gpu() -> None:
    with pytest.raises(ConfigError, match="--num-shard 3"):
        settled(LauncherConfig(num_shard=3), Machine(num_gpus=2, num_cores=8))
    assert settled(LauncherConfig(num_shard=3), CPU).num_shard == 3


def test_a_step_has_room_for_every_sequence_and_a_block() -> None:
    config = settled(LauncherConfig(max_batch_size=300, max_batch_draft_tokens=400, block_size=32), CPU)
    assert config.max_batch_prefill_tokens == 300 + 32
    assert settled(LauncherConfig(speculate=16), CPU).max_batch_prefill_tokens == 256


def test_more_drafts_fit_a_step_with_a_gpu() -> None:
    assert settled(LauncherConfig(), CPU).max_batch_draft_tokens == 96
    assert settled(LauncherConfig(), Machine(num_gpus=1, num_cores=8)).max_batch_draft_tokens == 256


@pytest.mark.parametrize(
    ("flags", "uses_heads"),
    [({}, True), ({"speculate": 3}, True), ({"speculate": 0}, False), ({"speculation_method": "ngram"}, False)],
)
def test_heads_are_idle_without_speculation_and_with_lookup_alone(flags: dict[str, Any], uses_heads: bool) -> None:
    assert LauncherConfig(**flags).drafts_with_heads is uses_heads


def test_the_length_follows_the_model_up_to_a_bound() -> None:
    assert with_model_length(LauncherConfig(), 2048).max_total_tokens == 2048
    assert with_model_length(LauncherConfig(), 131072).max_total_tokens == 8192
    assert with_model_length(LauncherConfig(max_total_tokens=131072), 131072).max_total_tokens == 131072
    assert with_model_length(LauncherConfig(max_batch_total_tokens=1024), 2048).max_total_tokens == 1024


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LauncherConfig(max_total_tokens=4096), "--max-total-tokens 4096.*2048.*max_position_embeddings"),
        (LauncherConfig(max_total_tokens=100, max_input_tokens=100), "--max-input-tokens 100"),
        (LauncherConfig(max_total_tokens=100, max_batch_total_tokens=99), "--max-batch-total-tokens 99"),
    ],
)
def test_a_length_that_does_not_fit_is_refused(config: LauncherConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        with_model_length(config, 2048)
