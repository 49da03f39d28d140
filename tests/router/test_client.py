import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from router import client
from tests.processes import PYTHONPATH
from tests.router.fake_engine import Served, eventually, serve


def against_server(use: Callable[[Served], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serve() as served:
            await use(served)

    asyncio.run(run())


def test_it_streams_the_text_and_sums_up_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    async def use(served: Served) -> None:
        arguments = ["--address", served.address, "--raw", "hello w", "--seed", "7", "--temperature", "0.5"]
        arguments += ["--speculate", "2", "--max-new-tokens", "3", "--top-k", "5", "--top-p", "0.5"]
        assert await asyncio.to_thread(client.main, arguments) == 0
        (request,) = served.engine.requests
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 5, 0.5, 7)
        assert (request.num_speculative_tokens, request.max_new_tokens) == (2, 3)

    against_server(use)
    captured = capsys.readouterr()
    assert captured.out == "hello w\n"
    assert captured.err.startswith("3 tokens, ")
    assert captured.err.endswith(" s, 1.50 tokens per step, 5 drafted, 4 accepted\n")


def test_a_refused_request_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    async def use(served: Served) -> None:
        # The tiny tokenizer has no chat template.
        arguments = ["--address", served.address, "hi", "--system", "be brief"]
        assert await asyncio.to_thread(client.main, arguments) == 1

    against_server(use)
    (line,) = capsys.readouterr().err.splitlines()
    assert "chat template" in line
    assert "INVALID_ARGUMENT" in line


def test_no_server_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert client.main(["--address", address, "hi"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{address} does not serve" in line


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--speculate", "x"], ["--seed", str(2**64)]])
def test_a_wrong_number_names_its_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        client.main(["hi", *arguments])
    assert f"argument {arguments[0]}: must be a whole number" in capsys.readouterr().err


def test_where_nobody_reads_any_more_it_ends_without_a_word() -> None:
    async def use(served: Served) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.client", "--address", served.address, "--raw", "abc"),
            env={"PYTHONPATH": PYTHONPATH},
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writing)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, errors) == (141, b"")
        await eventually(lambda: served.engine.num_open == 0)

    against_server(use)


def test_an_interrupt_cancels_the_request() -> None:
    async def use(served: Served) -> None:
        served.engine.hang = True
        # A shell's background job ignores SIGINT, and so would the child.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.client", "--address", served.address, "--raw", "abc"),
            env={"PYTHONPATH": PYTHONPATH},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await eventually(lambda: served.engine.num_open == 1)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, errors) == (130, b"\ncancelled\n")
        await eventually(lambda: served.engine.num_open == 0)

    against_server(use)
