"""Bad input to the real service: each gets one clear error or is cleaned up, and the next request does not notice.

First launches that cannot work, then requests to one running server.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from safetensors.torch import load_file, save_file

from tests.checkpoints import make_checkpoint
from tests.e2e import START_LIMIT_S, Launch, Stream, prompt
from tests.medusa_checkpoints import random_heads, write_heads

# --- launches


@dataclass(frozen=True, slots=True)
class BadLaunch:
    """`flags` and what `spoil` does to a copy of a good model; the error must hold every one of `says`."""

    says: tuple[str, ...]
    flags: dict[str, object]
    spoil: Callable[[Path], None] = lambda model: None


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def with_a_missing_file(model: Path) -> None:
    weights = model / "model.safetensors"
    names = list(load_file(weights))
    weights.rename(model / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def with_a_wrong_shape(model: Path) -> None:
    weights = model / "model.safetensors"
    save_file(load_file(weights) | {"model.norm.weight": torch.ones(71)}, weights)


def of_another_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def with_heads(*, hidden: int = 72, vocab: int = 131, base: str | None = "../model") -> Callable[[Path], None]:
    """Two heads in a folder beside the model, as --model-id=heads finds it."""

    def write(model: Path) -> None:
        heads = random_heads(2, 1, hidden, vocab, tied=False)
        write_heads(model.parent / "heads", heads, "v1", base=base)

    return write


def with_heads_that_lack_a_tensor(model: Path) -> None:
    with_heads()(model)
    file = model.parent / "heads" / "medusa_lm_head.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "1.0.linear.bias"}, file)


def with_a_driver_that_shows_gpus(model: Path) -> None:
    tool = model.parent / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-0)'\n")
    tool.chmod(0o700)


class Code:
    """Unpickled, it writes a second error to the log."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("an ERROR because this was run",)


def with_code_in_the_heads(model: Path) -> None:
    folder = write_heads(model.parent / "heads", random_heads(2, 1, 72, 131, tied=False), "v1-pt", base="../model")
    torch.save({"0.0.linear.weight": Code()}, folder / "medusa_lm_head.pt")


HEADS: dict[str, object] = {"model_id": "heads"}
BAD_LAUNCHES = {
    "unknown folder": BadLaunch(
        ("--model-id /no/such/model", "no such file or folder"), {"model_id": "/no/such/model"}
    ),
    "hub id while offline": BadLaunch(("--model-id some/model", "give a local folder"), {"model_id": "some/model"}),
    "no weights": BadLaunch(("neither model.safetensors nor", "download"), {}, without_weights),
    "truncated weights": BadLaunch(("model.safetensors is truncated", "download it again"), {}, truncated),
    "a file of the index is missing": BadLaunch(
        ("model-00002-of-00002.safetensors is missing", "download"), {}, with_a_missing_file
    ),
    "wrong tensor shape": BadLaunch(("model.norm.weight", "[71]", "config.json asks for [72]"), {}, with_a_wrong_shape),
    "unsupported architecture": BadLaunch(("'mamba' is not supported", "llama"), {}, of_another_architecture),
    "no tokenizer": BadLaunch(("tokenizer.json",), {}, without_tokenizer),
    "too few blocks": BadLaunch(
        ("--max-batch-total-tokens 300", "--max-total-tokens 1000", "raise the first"),
        {"max_batch_total_tokens": 300, "max_total_tokens": 1000},
    ),
    "longer than the model": BadLaunch(("--max-total-tokens 3000", "2048", "lower it"), {"max_total_tokens": 3000}),
    "heads of another hidden size": BadLaunch(
        ("hidden size of 64", "the model has 72", "for another model"), HEADS, with_heads(hidden=64)
    ),
    "heads of another vocabulary": BadLaunch(
        ("vocabulary of 130", "the model has 131", "for another model"), HEADS, with_heads(vocab=130)
    ),
    "heads that lack a tensor": BadLaunch(
        ("medusa_lm_head.safetensors", "the bias of block 0 of head 1 is missing"),
        HEADS,
        with_heads_that_lack_a_tensor,
    ),
    "code in the heads": BadLaunch(
        ("medusa_lm_head.pt cannot be loaded", "never unpickled"), HEADS, with_code_in_the_heads
    ),
    "heads without a base": BadLaunch(
        ("does not say for which model", "--model-id BASE --medusa heads"), HEADS, with_heads(base=None)
    ),
    "heads whose base has moved": BadLaunch(
        ("../moved", "no such file or folder", "--model-id BASE --medusa heads"), HEADS, with_heads(base="../moved")
    ),
    "more heads than there are": BadLaunch(
        ("--speculate 4", "heads has 2", "lower it"), {"medusa": "heads", "speculate": 4}, with_heads()
    ),
    "drafting by heads without any": BadLaunch(
        ("--speculation-method medusa needs Medusa heads",), {"speculation_method": "medusa"}
    ),
    "GPUs that torch cannot use": BadLaunch(
        ("the driver shows 1 GPU,", "install one built for CUDA", "CUDA_VISIBLE_DEVICES=''"),
        {},
        with_a_driver_that_shows_gpus,
    ),
    "too many drafts": BadLaunch(("'--speculate'", "17"), {"speculate": 17}),
    "taken http port": BadLaunch(("choose another with --port",), {"port": None}),
    "taken grpc port": BadLaunch(("choose another with --grpc-port",), {"grpc_port": None}),
}
if torch.cuda.is_available():
    del BAD_LAUNCHES["GPUs that torch cannot use"]


@dataclass(frozen=True, slots=True)
class Refusal:
    exit_code: int
    log: str
    temporary_files: list[Path]


def refuse(case: BadLaunch, model: Path, folder: Path) -> Refusal:
    spoilt = shutil.copytree(model, folder / "model")
    case.spoil(spoilt)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags: dict[str, Any] = {name: value or taken.getsockname()[1] for name, value in case.flags.items()}
        model_id = flags.pop("model_id", spoilt)
        environ = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        with Launch(folder, model_id, environ=environ, num_shard=1, threads=1, **flags) as launch:
            exit_code = launch.exit_code(START_LIMIT_S)
            launch.wait_gone()
            return Refusal(exit_code, launch.log, launch.temporary_files)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", BAD_LAUNCHES)
def test_a_launch_that_cannot_work_says_why_and_ends(model: Path, tmp_path: Path, name: str) -> None:
    refusal = refuse(BAD_LAUNCHES[name], model, tmp_path)
    assert refusal.exit_code in (1, 2), refusal.log
    errors = [line for line in refusal.log.splitlines() if " ERROR " in line or line.startswith("Error: ")]
    assert len(errors) == 1, refusal.log
    assert all(words in errors[0] for words in BAD_LAUNCHES[name].says), errors[0]
    assert "Traceback" not in refusal.log
    assert "starting it again" not in refusal.log
    assert refusal.temporary_files == []


# --- requests

MAX_REQUESTS = 8
PAYLOAD_LIMIT = 20_000


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    flags: dict[str, Any] = {
        "max_concurrent_requests": MAX_REQUESTS,
        "payload_limit": PAYLOAD_LIMIT,
        "speculate": 3,
        "threads": 1,
    }
    with Launch(tmp_path_factory.mktemp("service"), model, num_shard=1, dtype="float64", **flags) as launch:
        launch.wait_healthy()
        yield launch


def normal(service: Launch) -> Stream:
    return Stream(service, new=60, token_ids=prompt())


@pytest.fixture(scope="module")
def expected(service: Launch) -> list[int]:
    tokens = normal(service).finish()
    assert len(set(tokens)) >= 30
    return tokens


@pytest.fixture(autouse=True)
def the_next_request_is_served(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test of the running server: nothing is held, and a normal request has the tokens it always had."""
    if "service" not in request.fixturenames:
        yield
        return
    service, expected = request.getfixturevalue("service"), request.getfixturevalue("expected")
    yield
    service.wait_until(lambda: in_use(service) == (0, 0, 0), "blocks and sequences to be free again")
    assert normal(service).finish() == expected
    assert service.metric("drafthouse_shard_restarts_total") == 0
    assert service.log.count("launcher: ready in") == 1
    assert "Traceback" not in service.log


def in_use(service: Launch) -> tuple[float, float, float]:
    return (
        service.metric("drafthouse_kv_blocks", state="used"),
        service.metric("drafthouse_sequences", state="running"),
        service.metric("drafthouse_sequences", state="waiting"),
    )


@pytest.mark.parametrize(
    ("field", "request_fields", "says"),
    [
        ("input", {}, "must be given"),
        ("text", {"text": ""}, "empty"),
        ("token_ids", {"token_ids": {}}, "empty"),
        ("token_ids", {"token_ids": {"ids": [5] * 2100}}, "has 2100 tokens; at most 2047"),
        ("token_ids.ids", {"token_ids": {"ids": [5, 131]}}, "token id 131 is outside the vocabulary of 131"),
        ("sampling.temperature", {"sampling": {"temperature": -1}}, "-1"),
        ("sampling.temperature", {"sampling": {"temperature": float("nan")}}, "nan"),
        ("sampling.top_p", {"sampling": {"temperature": 1, "top_p": 1.5}}, "1.5"),
        ("stopping.max_new_tokens", {"stopping": {"max_new_tokens": 0}}, "at least 1"),
        ("stopping.max_new_tokens", {"stopping": {"max_new_tokens": 2048}}, "are 2049; at most 2048"),
        ("stopping.stop_strings", {"stopping": {"stop_strings": list("abcde")}}, "5 were given; at most 4"),
        ("n", {"n": 0}, "not 0"),
    ],
)
def test_a_wrong_field_is_named(service: Launch, field: str, request_fields: dict[str, Any], says: str) -> None:
    if field.split(".")[0] in ("sampling", "stopping", "n"):
        request_fields = {"text": "a"} | request_fields
    request_fields.setdefault("stopping", {})
    error = Stream(service, **request_fields).failure()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")
    assert says in error.details()


def test_a_message_over_the_limit_is_refused(service: Launch) -> None:
    error = Stream(service, text="a" * PAYLOAD_LIMIT).failure()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(PAYLOAD_LIMIT) in error.details()


@pytest.mark.parametrize("data", [b"\xff\x00garbage" * 500, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_garbage_on_a_port_hurts_nobody(service: Launch, data: bytes) -> None:
    stream = normal(service)
    for port in (service.grpc_port, service.http_port):
        # The server may close first; whether it says goodbye is its affair.
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert stream.finish() == normal(service).finish()


def test_a_client_that_leaves_in_mid_stream_frees_its_blocks(service: Launch) -> None:
    cancelled = service.metric("drafthouse_requests_total", status="cancelled")
    stream = Stream(service, token_ids=prompt(20), new=2000).read(3)
    service.wait_until(lambda: in_use(service)[0] > 0, "blocks to be used")
    stream.cancel()
    service.wait_until(
        lambda: service.metric("drafthouse_requests_total", status="cancelled") == cancelled + 1, "the end of a stream"
    )


def test_a_deadline_ends_an_answer_that_is_too_long_for_it(service: Launch) -> None:
    late = service.metric("drafthouse_requests_total", status="deadline")
    stream = Stream(service, token_ids=prompt(20), new=2000, timeout_s=0.5)
    assert stream.failure().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(stream.token_ids) < 2000
    service.wait_until(
        lambda: service.metric("drafthouse_requests_total", status="deadline") == late + 1, "the end of a stream"
    )


def test_too_many_clients_are_turned_away_and_the_others_served(service: Launch, expected: list[int]) -> None:
    refused = []
    num_served = 0
    for stream in [normal(service) for _ in range(40)]:
        try:
            assert stream.finish() == expected
            num_served += 1
        except grpc.RpcError as error:
            refused.append(error)
    assert MAX_REQUESTS <= num_served < 40
    for refusal in refused:
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(refusal).details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() > 0
