import os
from dataclasses import fields

import pytest
from click.testing import CliRunner, Result

import launcher.__main__ as entry
from launcher.config import LauncherConfig, settled
from launcher.machine import Machine
from launcher.options import env_names, without_variables


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[LauncherConfig]:
    """Configurations that got as far as a launch, on a machine with 8 cores and no GPU."""
    seen: list[LauncherConfig] = []
    for name in os.environ.keys() - without_variables(os.environ).keys():
        monkeypatch.delenv(name)
    monkeypatch.setattr(entry, "inspect_machine", lambda environ: Machine(num_gpus=0, num_cores=8))
    monkeypatch.setattr(entry, "launch", lambda config, machine, environ, log, programs: seen.append(config) or 0)
    return seen


def run(*flags: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(entry.main, list(flags), env=env)


def test_without_flags_the_default_model_is_served_unsplit_with_the_drafts_of_its_heads(
    launched: list[LauncherConfig],
) -> None:
    assert run().exit_code == 0
    (config,) = launched
    assert (config.model_id, config.num_shard, config.speculate, config.dtype) == (None, 1, None, "bfloat16")


def test_a_flag_wins_over_its_environment_variable(launched: list[LauncherConfig]) -> None:
    env = {"DRAFTHOUSE_SPECULATE": "2", "DRAFTHOUSE_PORT": "8080", "DRAFTHOUSE_JSON_OUTPUT": "true"}
    assert run("--speculate", "5", env=env).exit_code == 0
    assert (launched[0].speculate, launched[0].port, launched[0].json_output) == (5, 8080, True)
    assert run("--speculate", "auto", env=env).exit_code == 0
    assert launched[1].speculate == "auto"


def test_help_names_every_flag_and_its_variables() -> None:
    text = run("--help").output
    for field in fields(LauncherConfig):
        assert "--" + field.name.replace("_", "-") in text
        assert all(name in text for name in env_names(field))


def test_variables_of_text_generation_inference_count_after_our_own(launched: list[LauncherConfig]) -> None:
    env = {"MODEL_ID": "org/model", "NUM_SHARD": "4", "PORT": "80", "JSON_OUTPUT": "true", "QUANTIZE": ""}
    result = run(env=env)
    assert result.exit_code == 0, result.output
    config = launched[0]
    assert (config.model_id, config.num_shard, config.port, config.json_output) == ("org/model", 4, 80, True)
    assert "from the environment: MODEL_ID=org/model, NUM_SHARD=4, PORT=80, JSON_OUTPUT=true" in result.output
    assert run("--port=81", env=env | {"DRAFTHOUSE_NUM_SHARD": "2", "DRAFTHOUSE_PORT": "82"}).exit_code == 0
    assert (launched[1].num_shard, launched[1].port) == (2, 81)


def test_what_a_runtime_sets_for_every_container_is_no_flag(launched: list[LauncherConfig]) -> None:
    env = {"HOSTNAME": "7f3a", "MASTER_ADDR": "job-0", "MASTER_PORT": "29500", "LOG_LEVEL": "info,tower=off"}
    assert run(env=env).exit_code == 0
    assert launched == [settled(LauncherConfig(), Machine(num_gpus=0, num_cores=8))]


def test_processes_that_are_to_have_no_flag_from_the_environment_see_no_variable() -> None:
    environ = {
        "DRAFTHOUSE_SPECULATE": "1",
        "DRAFTHOUSE_PORT_3001_TCP": "x",
        "NUM_SHARD": "2",
        "HOSTNAME": "h",
        "A": "b",
    }
    assert without_variables(environ) == {"HOSTNAME": "h", "A": "b"}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--speculate", "17"], "--speculate"),
        (["--speculate", "many"], "--speculate"),
        (["--speculate", "-1"], "--speculate"),
        (["--tree-size", "65"], "--tree-size"),
        (["--tree-width", "0"], "--tree-width"),
        (["--speculation-method", "eagle"], "--speculation-method"),
        (["--speculation-method", "ngram"], "--speculation-method ngram needs --speculate"),
        (["--tree-size", "20", "--max-batch-draft-tokens", "16"], "--tree-size 20"),
        (["--medusa-revision", "v2"], "--medusa-revision needs --medusa"),
        (["--dtype", "int8"], "--dtype"),
        (["--num-shard", "0"], "--num-shard"),
        (["--port", "70000"], "--port"),
        (["--cuda-memory-fraction", "0"], "--cuda-memory-fraction"),
        (["--port", "3001"], "--grpc-port"),
        (["--step-timeout", "5"], "--collective-timeout"),
        (["--step-timeout", "inf"], "--step-timeout"),
        (["--collective-timeout", "nan"], "--collective-timeout"),
        (["--cuda-memory-fraction", "nan"], "--cuda-memory-fraction"),
        (["--shard-uds-path", "/no/such/folder/shard"], "--shard-uds-path"),
        (["--shard-uds-path", "/tmp/" + "x" * 120], "--shard-uds-path"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_wrong_flag_exits_2_with_one_message_that_names_it(
    launched: list[LauncherConfig], flags: list[str], named: str
) -> None:
    result = run(*flags)
    assert result.exit_code == 2
    assert not launched
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert named in errors[0]


def test_a_wrong_environment_variable_exits_2_and_is_named(launched: list[LauncherConfig]) -> None:
    for env, named in (
        ({"DRAFTHOUSE_NUM_SHARD": "many"}, "DRAFTHOUSE_NUM_SHARD"),
        ({"NUM_SHARD": "many", "DRAFTHOUSE_NUM_SHARD": ""}, "NUM_SHARD"),
        ({"NUM_SHARD": "2", "KV_CACHE_DTYPE": "fp8_e5m2"}, "KV_CACHE_DTYPE"),
    ):
        result = run(env=env)
        assert result.exit_code == 2
        assert f"(from {named}): " in result.output
    assert "(from " not in run("--num-shard=many", env={"NUM_SHARD": "2"}).output
    assert not launched


def test_what_kubernetes_sets_for_a_service_called_drafthouse_is_no_flag(launched: list[LauncherConfig]) -> None:
    links = {
        "DRAFTHOUSE_SERVICE_HOST": "10.96.0.7",
        "DRAFTHOUSE_SERVICE_PORT": "3001",
        "DRAFTHOUSE_PORT": "tcp://10.96.0.7:3001",
        "DRAFTHOUSE_PORT_3001_TCP": "tcp://10.96.0.7:3001",
        "DRAFTHOUSE_PORT_3001_TCP_PORT": "3001",
        # Of a second service, drafthouse-grpc, in a cluster with IPv6.
        "DRAFTHOUSE_GRPC_PORT": "tcp://[fd00::7]:3001",
    }
    result = run(env=links)
    assert result.exit_code == 0, result.output
    assert (launched[0].port, launched[0].grpc_port) == (3000, 3001)
    assert run("--port", "8080", env=links).exit_code == 0
    assert launched[1].port == 8080
