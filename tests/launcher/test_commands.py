from dataclasses import replace
from pathlib import Path

from launcher.commands import RunPaths, agent_spec, router_spec
from launcher.config import LauncherConfig, settled, with_model_length
from launcher.machine import Machine
from launcher.resolve import ResolvedModel

MODEL = ResolvedModel(Path("/models/tiny"), "tiny", "dequantized from Q4_1", 2048, "/models/tiny")
PATHS = RunPaths(Path("/run/x"), "/run/x/shard")
ENVIRON = {"PATH": "/bin", "DRAFTHOUSE_PORT": "1", "NUM_SHARD": "4", "PET_NNODES": "4", "OMP_NUM_THREADS": "64"}


def config(**flags: object) -> LauncherConfig:
    filled = settled(LauncherConfig(**flags), Machine(num_gpus=0, num_cores=8))  # type: ignore[arg-type]
    return with_model_length(filled, MODEL.max_positions)


def test_a_shard_is_told_everything_on_its_command_line() -> None:
    spec = agent_spec(
        config(num_shard=2, speculate=3, max_batch_total_tokens=4096, quantize="int8", kv_cache_dtype="fp8"),
        MODEL,
        PATHS,
        {},
        ["agent"],
        num_gpus=2,
    )
    shard = spec.command[spec.command.index("agent") + 1 :]
    assert {
        "--model-path=/models/tiny",
        "--speculate=3",
        "--quantize=int8",
        "--kv-cache-dtype=fp8",
        "--max-total-tokens=2048",
        "--max-batch-total-tokens=4096",
        "--threads=3",
        "--num-gpus=2",
        "--uds-path=/run/x/shard",
        "--weights-note=dequantized from Q4_1",
    } <= set(shard)
    assert not any(word.startswith("--json-output") for word in shard)


def test_a_shard_is_told_where_its_heads_are_and_how_to_draft() -> None:
    model = replace(MODEL, medusa_path=Path("/models/heads"), medusa_name="heads")
    flags = config(speculate=4, speculation_method="hybrid", tree_size=16, tree_width=1, max_batch_draft_tokens=48)
    assert {
        "--medusa-path=/models/heads",
        "--speculate=4",
        "--speculation-method=hybrid",
        "--tree-size=16",
        "--tree-width=1",
        "--max-batch-draft-tokens=48",
    } <= set(agent_spec(flags, model, PATHS, {}, ["agent"], num_gpus=0).command)


def test_drafting_is_left_to_the_shard_where_nothing_is_said_of_it() -> None:
    command = agent_spec(config(), MODEL, PATHS, {}, ["agent"], num_gpus=0).command
    assert not any(word.startswith(("--medusa", "--speculate", "--tree")) for word in command)
    assert "--speculate=0" in agent_spec(config(speculate=0), MODEL, PATHS, {}, ["agent"], num_gpus=0).command


def test_unset_flags_are_left_to_the_child_and_switches_carry_no_value() -> None:
    command = router_spec(config(json_output=True), MODEL, PATHS, {}, ["router"]).command
    assert "--json-output" in command
    assert "--disable-prefix-caching" not in command
    assert not any(word.startswith(("--revision", "--max-input-tokens")) for word in command)


def test_children_see_neither_our_variables_nor_foreign_torchrun_settings() -> None:
    environ = agent_spec(config(num_shard=7), MODEL, PATHS, ENVIRON, ["agent"], num_gpus=0).environ
    assert environ["PATH"] == "/bin"
    assert environ["OMP_NUM_THREADS"] == "1"
    assert environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environ.keys().isdisjoint({"DRAFTHOUSE_PORT", "NUM_SHARD", "PET_NNODES"})
    router = router_spec(config(), MODEL, PATHS, ENVIRON, ["router"]).environ
    assert router.keys().isdisjoint({"DRAFTHOUSE_PORT", "NUM_SHARD"})


def test_a_waiting_policy_that_the_user_set_is_kept() -> None:
    environ = agent_spec(config(), MODEL, PATHS, {"OMP_WAIT_POLICY": "ACTIVE"}, ["agent"], num_gpus=0).environ
    assert environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_shards_meet_in_the_private_folder_and_speak_on_the_loopback_interface() -> None:
    spec = agent_spec(config(), MODEL, PATHS, {}, ["agent"], num_gpus=0)
    assert f"--meeting-place={PATHS.run_dir}/meeting" in spec.command
    assert spec.environ["GLOO_SOCKET_IFNAME"] == "lo"
    kept = agent_spec(config(), MODEL, PATHS, {"GLOO_SOCKET_IFNAME": "eth1"}, ["agent"], num_gpus=0)
    assert kept.environ["GLOO_SOCKET_IFNAME"] == "eth1"
