"""The whole service through `python -m launcher`: real processes, two shards, and every one of them killed in turn.

In float64, so that a stream that was interrupted and replayed must have exactly the tokens of one that was not.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from drafthouse.v1 import generation_pb2, sampling_pb2
from tests.checkpoints import make_checkpoint
from tests.e2e import Launch, Stream, prompt
from tests.processes import assert_promtool_accepts, child_environ, wait_until
from tests.router.documented_metrics import DOCUMENTED

# One greedy, one sampled; both draft.
REQUESTS: list[dict[str, Any]] = [
    {"token_ids": prompt()},
    {"token_ids": prompt(20), "sampling": {"temperature": 0.8, "top_k": 40, "seed": 2**63 + 9}},
]
# Drafts are checked whether they pay or not: on a model as small as this they do not.
FLAGS: dict[str, Any] = {
    "num_shard": 2,
    "speculate": 3,
    "draft_min_probability": 0,
    "dtype": "float64",
    "threads": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    # Short timeouts, so that a stuck shard is noticed soon.
    timeouts: dict[str, Any] = {"collective_timeout": 8, "step_timeout": 10}
    folder = tmp_path_factory.mktemp("service")
    # It is started in a folder of somebody else's, whose files are not to run.
    for name in ("numpy", "torch", "jinja2", "tokenizers"):
        (folder / f"{name}.py").write_text('raise SystemExit("a planted module was imported")')
    with Launch(folder, model, **FLAGS, **timeouts) as launch:
        launch.wait_healthy()
        yield launch


@pytest.fixture(scope="module")
def expected(service: Launch) -> list[list[int]]:
    """What undisturbed, undrafted streams give."""
    return [Stream(service, **request, speculate=0).finish() for request in REQUESTS]


def start_all(service: Launch) -> list[Stream]:
    """Every request at once, each with some of its answer here and most of it to come."""
    streams = [Stream(service, **request) for request in REQUESTS]
    return [stream.read(20) for stream in streams]


@contextmanager
def replaced(service: Launch, expected: list[list[int]]) -> Iterator[None]:
    """The group goes and comes back under running streams, and nobody can tell from their tokens."""
    restarts, seen = service.metric("drafthouse_shard_restarts_total"), len(service.log)
    streams = start_all(service)
    yield
    service.wait_until(lambda: service.health() == 503, "the loss to show in /health")
    service.wait_healthy()
    assert [stream.finish() for stream in streams] == expected
    assert service.metric("drafthouse_shard_restarts_total") == restarts + 1
    log = service.log[seen:]
    assert log.count("replaying 2 sequences") == 1
    assert service.metric("drafthouse_shard_up") == 2
    # The first new group came up: none failed on what its predecessor had left.
    assert log.count("WARNING shards: shard failed") + log.count("WARNING launcher: shards ") == 1


def test_text_streams_and_speculation_changes_no_token(model: Path, service: Launch, expected: list[list[int]]) -> None:
    assert all(len(tokens) == 300 and len(set(tokens)) >= 30 for tokens in expected)
    streams = [Stream(service, **request) for request in REQUESTS]
    assert [stream.finish() for stream in streams] == expected
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for stream in streams:
        assert len(stream.responses) > 30
        assert stream.text == tokenizer.decode(stream.token_ids, skip_special_tokens=True)
        assert (stream.last.usage.prompt_tokens, stream.last.usage.generated_tokens) == (30, 300)
    greedy = streams[0].last.speculation
    assert 0 < greedy.accepted_tokens < greedy.drafted_tokens
    assert greedy.steps + greedy.accepted_tokens == 300


def test_http_says_that_it_is_healthy_and_every_metric_is_there(service: Launch, expected: list[list[int]]) -> None:
    assert service.health() == 200
    exposition = service.exposition()
    families = {family.name: family for family in text_string_to_metric_families(exposition)}
    assert families.keys() >= DOCUMENTED.keys()
    for name, (_, labels) in DOCUMENTED.items():
        assert families[name].samples, name
        assert {label for sample in families[name].samples for label in sample.labels} - {"le"} == labels
    assert service.metric("drafthouse_generated_tokens_total") >= sum(map(len, expected))
    assert_promtool_accepts(exposition)


def test_model_info_says_what_is_served_and_by_what(model: Path, service: Launch) -> None:
    info = service.stub.GetModelInfo(generation_pb2.GetModelInfoRequest(), timeout=10)
    assert (info.model_id, info.revision, info.weights, info.heads) == (str(model), "", "", "")
    assert (info.model_type, info.dtype, info.device, info.vocab_size) == ("llama", "float64", "cpu", 131)
    assert (info.num_shards, info.max_total_tokens, info.block_size) == (2, 2048, 16)
    assert (info.speculate, info.tree_size) == (3, 3)
    assert list(info.speculation_methods) == [sampling_pb2.SPECULATION_METHOD_NGRAM]
    assert info.kernels["linear"] == info.kernels["layers"] == "torch"
    # How the two shards add up what they have is told too.
    assert info.kernels["collectives"]
    assert info.max_batch_size > 0
    assert info.num_blocks * info.block_size >= info.max_total_tokens
    assert info.version


def test_grpc_health_and_reflection_speak_for_the_service(service: Launch) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", "drafthouse.v1.GenerationService"):
        response = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=10)
    names = {listed.name for listed in answer.list_services_response.service}
    assert names >= {"drafthouse.v1.GenerationService", "grpc.health.v1.Health"}


def test_nobody_listens_but_at_the_two_ports_and_on_the_loopback_interface(service: Launch) -> None:
    """Whoever reaches a store of torch's could have what he puts there unpickled."""
    listeners = service.listeners()
    assert {("127.0.0.1", service.http_port), ("127.0.0.1", service.grpc_port)} <= listeners
    assert {address for address, _ in listeners} == {"127.0.0.1"}


def test_the_client_prints_the_answer_and_what_speculation_did(service: Launch) -> None:
    text = "to be or not to be or not to be"
    command = [sys.executable, "-m", "router.client", "--address", service.grpc_address, "--max-new-tokens", "40"]
    client = subprocess.run(
        [*command, "--raw", text],
        capture_output=True,
        env=child_environ(PYTHONIOENCODING="utf-8"),
        timeout=60,
        check=False,
    )
    same = Stream(service, text=text, stopping={"max_new_tokens": 40})
    same.finish()
    assert (client.returncode, client.stdout.decode()) == (0, same.text + "\n"), client.stderr.decode()
    count = same.last.usage.generated_tokens
    line = rf"{count} tokens, [\d.]+ tokens/s, first token after [\d.]+ s, [\d.]+ tokens per step, "
    assert re.fullmatch(line + r"\d+ drafted, \d+ accepted\n", client.stderr.decode())


def test_a_killed_shard_costs_a_pause_and_no_token(service: Launch, expected: list[list[int]]) -> None:
    with replaced(service, expected):
        service.shard(1).kill()


def test_shards_that_are_all_told_to_end_are_replaced(service: Launch, expected: list[list[int]]) -> None:
    with replaced(service, expected):
        for shard in (service.shard(0), service.shard(1)):
            # The agent may have ended the other one by now.
            with suppress(ProcessLookupError):
                shard.kill(signal.SIGTERM)


def test_a_stuck_shard_is_replaced(service: Launch, expected: list[list[int]]) -> None:
    with replaced(service, expected):
        service.shard(0).kill(signal.SIGSTOP)


def test_a_killed_agent_costs_a_pause_and_no_token(service: Launch, expected: list[list[int]]) -> None:
    with replaced(service, expected):
        before = {service.shard(0).pid, service.shard(1).pid}
        service.agent.kill()
    assert not before & {process.pid for process in service.processes()}


def test_a_killed_router_ends_its_streams_and_a_new_one_serves(service: Launch, expected: list[list[int]]) -> None:
    streams = start_all(service)
    service.router.kill()
    for stream in streams:
        assert stream.failure().code() is grpc.StatusCode.UNAVAILABLE
    service.wait_healthy()
    assert service.metric("drafthouse_requests_total") == 0
    assert [Stream(service, **request).finish() for request in REQUESTS] == expected


def test_sigterm_finishes_the_open_streams_and_refuses_others(
    model: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    """A service of its own, for other tests may come after this one."""
    with Launch(tmp_path, model, **FLAGS) as service:
        service.wait_healthy()
        streams = start_all(service)
        service.terminate()
        service.wait_until(lambda: service.health() == 503, "the drain to show in /health")
        assert Stream(service, **REQUESTS[0]).failure().code() is grpc.StatusCode.UNAVAILABLE
        assert [stream.finish() for stream in streams] == expected
        assert service.exit_code() == 0
        service.wait_gone()
        assert service.temporary_files == []


def test_nothing_outlives_a_killed_launcher(model: Path, tmp_path: Path) -> None:
    with Launch(tmp_path, model, **FLAGS) as service:
        service.wait_healthy()
        stream = Stream(service, **REQUESTS[0]).read(20)
        assert len(service.processes()) == 5
        service.kill()
        service.wait_gone()
        assert stream.failure().code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("num_processes", [3, 5], ids=["before the shards", "while the shards load"])
def test_sigterm_during_the_start_ends_everything(model: Path, tmp_path: Path, num_processes: int) -> None:
    with Launch(tmp_path, model, **FLAGS) as service:
        wait_until(lambda: len(service.processes()) >= num_processes, what="the children")
        service.terminate()
        assert service.exit_code() == 0
        service.wait_gone()
        assert service.temporary_files == []
        assert "Traceback" not in service.log
