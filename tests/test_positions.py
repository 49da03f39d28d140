"""Launcher and shard take the same length of a model from its config.json, though neither imports the other."""

from typing import Any

import pytest

from launcher.positions import max_positions
from shard.model_config import ModelConfig
from tests.launcher.test_positions import CASES
from tests.shard.test_model_config import BASE


@pytest.mark.parametrize("config", [config for config, _ in CASES.values()], ids=CASES.keys())
def test_launcher_and_shard_agree_on_how_long_a_model_is(config: dict[str, Any]) -> None:
    family = "gemma3_text" if "full_attention" in (config.get("rope_parameters") or {}) else "llama"
    blends = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        config = config | {"rope_scaling": config["rope_scaling"] | blends}
    assert ModelConfig.from_dict(BASE | {"model_type": family} | config).max_positions == max_positions(config)
