from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import router.config
import shard.config
from launcher.commands import GROUP_RESTARTS, RunPaths, agent_spec, router_spec
from launcher.config import LauncherConfig, settled, with_model_length
from launcher.machine import Machine
from launcher.resolve import ResolvedModel
from router.config import RouterConfig
from shard.config import ShardConfig

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
    flags = spec.command[spec.command.index("agent") + 1 :]
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
    } <= set(flags)
    assert not any(word.startswith("--json-output") for word in flags)


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
    of_the_router = router_spec(config(), MODEL, PATHS, ENVIRON, ["router"]).environ
    assert of_the_router.keys().isdisjoint({"DRAFTHOUSE_PORT", "NUM_SHARD"})


def test_a_waiting_policy_that_the_user_set_is_kept() -> None:
    environ = agent_spec(config(), MODEL, PATHS, {"OMP_WAIT_POLICY": "ACTIVE"}, ["agent"], num_gpus=0).environ
    assert environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_shards_meet_in_the_private_folder_and_speak_on_the_loopback_interface() -> None:
    spec = agent_spec(config(), MODEL, PATHS, {}, ["agent"], num_gpus=0)
    assert f"--meeting-place={PATHS.run_dir}/meeting" in spec.command
    assert spec.environ["GLOO_SOCKET_IFNAME"] == "lo"
    kept = agent_spec(config(), MODEL, PATHS, {"GLOO_SOCKET_IFNAME": "eth1"}, ["agent"], num_gpus=0)
    assert kept.environ["GLOO_SOCKET_IFNAME"] == "eth1"


# Each other than its default, and than each other where that can be.
ALL = LauncherConfig(
    model_id="some/model",
    revision="v2",
    medusa="some/heads",
    medusa_revision="v3",
    num_shard=3,
    speculate=5,
    speculation_method="hybrid",
    tree_size=17,
    tree_width=6,
    draft_min_probability=0.125,
    dtype="float16",
    quantize="int8",
    kv_cache_dtype="fp8",
    max_total_tokens=1001,
    max_input_tokens=501,
    max_batch_prefill_tokens=301,
    max_batch_size=41,
    max_batch_draft_tokens=51,
    max_batch_total_tokens=2002,
    block_size=8,
    cuda_memory_fraction=0.75,
    max_concurrent_requests=61,
    max_stop_sequences=7,
    payload_limit=70_001,
    hostname="127.0.0.2",
    port=4001,
    grpc_port=4002,
    shard_uds_path="/run/y/shard",
    threads=9,
    collective_timeout=11.5,
    step_timeout=22.5,
    graceful_termination_timeout=33.5,
    huggingface_hub_cache="/cache",
    disable_prefix_caching=True,
    json_output=True,
    log_level="debug",
)
HEADS = replace(MODEL, medusa_path=Path("/models/heads"), medusa_name="heads")


def fields_of(config: LauncherConfig | ShardConfig | RouterConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def told(command: list[str]) -> set[str]:
    return {word.split("=")[0].removeprefix("--").replace("-", "_") for word in command}


def test_none_of_the_flags_below_is_at_its_default() -> None:
    """Else what is not handed on would not be missed."""
    defaults = fields_of(LauncherConfig())
    assert not [name for name, value in fields_of(ALL).items() if value == defaults[name]]


def test_a_shard_reads_what_the_launcher_was_given_field_by_field() -> None:
    spec = agent_spec(ALL, HEADS, PATHS, {}, ["agent"], num_gpus=12)
    of_the_agent = {"num_shard", "max_restarts", "meeting_place", "shard_output"}
    flags = [word for word in spec.command[1:] if told([word]).isdisjoint(of_the_agent)]
    names = {field.name for field in fields(ShardConfig)}
    assert told(flags) == names
    assert fields_of(shard.config.parse_args(flags)) == {
        **{name: value for name, value in fields_of(ALL).items() if name in names},
        "model_path": HEADS.path,
        "medusa_path": HEADS.medusa_path,
        "weights_note": HEADS.weights_note,
        "uds_path": PATHS.uds_prefix,
        "run_dir": PATHS.run_dir,
        "memory_fraction": ALL.cuda_memory_fraction,
        "num_gpus": 12,
    }
    assert set(spec.command[1:]) - set(flags) == {
        "--num-shard=3",
        f"--max-restarts={GROUP_RESTARTS}",
        "--meeting-place=/run/x/meeting",
        "--shard-output=/run/x/output",
    }


def test_the_router_reads_what_the_launcher_was_given_field_by_field() -> None:
    spec = router_spec(ALL, HEADS, PATHS, {}, ["router"])
    names = {field.name for field in fields(RouterConfig)}
    assert told(spec.command[1:]) == names
    assert fields_of(router.config.parse_args(spec.command[1:])) == {
        **{name: value for name, value in fields_of(ALL).items() if name in names},
        "model_path": HEADS.path,
        "model_id": HEADS.model_id,
        "shard_uds_path": PATHS.uds_prefix,
        "run_dir": PATHS.run_dir,
    }
    assert spec.grace_s > ALL.graceful_termination_timeout


def test_every_flag_of_the_launcher_is_somebodys() -> None:
    used_here = {"medusa", "medusa_revision", "huggingface_hub_cache", "cuda_memory_fraction"}
    names = {field.name for config in (ShardConfig, RouterConfig) for field in fields(config)}
    assert {field.name for field in fields(LauncherConfig)} - names == used_here
