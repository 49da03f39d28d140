"""The files are those that were published, by what matters here."""

from typing import Any

import pytest

from launcher.positions import max_positions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}
LINEAR = {"type": "linear", "factor": 4.0}
KIMI = {"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096}
GEMMA3 = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen2.5 as its model card extends it": ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
    "Qwen3 as its model card extends it": ({"max_position_embeddings": 40960, "rope_parameters": YARN}, 131072),
    "Kimi K2, scaled already": ({"max_position_embeddings": 262144, "rope_scaling": KIMI}, 262144),
    "yarn without the length before": (
        {"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        32768,
    ),
    "yarn that names the length before outside": (
        {
            "max_position_embeddings": 8192,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "yarn", "factor": 16.0},
        },
        65536,
    ),
    "yarn that leaves its factor to the two lengths": (
        {"max_position_embeddings": 65536, "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 8192}},
        65536,
    ),
    "yarn that reaches less far than the model": (
        {"max_position_embeddings": 40960, "rope_scaling": YARN | {"factor": 1.0}},
        40960,
    ),
    "Vicuna 16k": (
        {"max_position_embeddings": 4096, "max_sequence_length": 16384, "rope_scaling": LINEAR},
        16384,
    ),
    "Chinese Alpaca 16k, scaled already": ({"max_position_embeddings": 16384, "rope_scaling": LINEAR}, 16384),
    "a length that nothing is scaled for": (
        {"max_position_embeddings": 4096, "max_sequence_length": 16384},
        4096,
    ),
    "Llama 3.2": ({"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
    "gemma3, scaled already": ({"max_position_embeddings": 131072, "rope_parameters": GEMMA3}, 131072),
    "an absurd factor": (
        {
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "yarn", "factor": 1e308, "original_max_position_embeddings": 4096},
        },
        10**15,
    ),
    "nothing scaled": ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
}


@pytest.mark.parametrize(("config", "positions"), CASES.values(), ids=CASES.keys())
def test_the_length_after_scaling_is_taken_where_a_file_surely_says_it(config: dict[str, Any], positions: int) -> None:
    assert max_positions(config) == positions


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": 2048, "rope_scaling": "yarn"},
        {"max_position_embeddings": 2048, "rope_scaling": {"type": "yarn", "factor": "4"}},
        {"max_position_embeddings": 2048, "rope_scaling": YARN | {"original_max_position_embeddings": "4"}},
    ],
)
def test_what_the_shards_will_refuse_is_not_read_here(config: dict[str, Any]) -> None:
    assert max_positions(config) == 2048
    assert max_positions({}) is None
