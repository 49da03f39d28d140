import os
from dataclasses import fields

import pytest
from click.testing import CliRunner, Result

import launcher.__main__ as entry
from launcher.config import LauncherConfig
from launcher.machine import Machine
from launcher.options import env_name


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[LauncherConfig]:
    """Configurations that got as far as a launch, on a machine with 8 cores and no GPU."""
    seen: list[LauncherConfig] = []
    for name in list(os.environ):
        if name.startswith("DRAFTHOUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(entry, "inspect_machine", lambda environ: Machine(num_gpus=0, num_cores=8))
    monkeypatch.setattr(entry, "launch", lambda config, environ, log, programs: seen.append(config) or 0)
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


def test_help_names_every_flag_and_its_variable() -> None:
    text = run("--help").output
    for field in fields(LauncherConfig):
        assert "--" + field.name.replace("_", "-") in text
        assert env_name(field.name) in text


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
        (["--master-addr", "10.0.0.1"], "--master-port"),
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


def test_a_wrong_environment_variable_exits_2(launched: list[LauncherConfig]) -> None:
    result = run(env={"DRAFTHOUSE_NUM_SHARD": "many"})
    assert result.exit_code == 2
    assert "--num-shard" in result.output
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
