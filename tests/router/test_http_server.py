import asyncio
import contextlib
import signal
import socket

import grpc
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from router.http_server import HttpServer
from tests.router.fake_engine import serve


def test_health_follows_the_engine() -> None:
    async def run() -> None:
        async with serve() as served, httpx.AsyncClient(base_url=served.url) as client:
            for is_ready, is_draining, code, status in (
                (True, False, 200, "ok"),
                (False, False, 503, "not ready"),
                (False, True, 503, "draining"),
            ):
                served.engine.is_ready, served.engine.is_draining = is_ready, is_draining
                response = await client.get("/health")
                assert (response.status_code, response.json()) == (code, {"status": status})
            assert (await client.get("/nothing")).status_code == 404

    asyncio.run(run())


def test_metrics_come_in_the_format_that_is_accepted() -> None:
    async def run() -> None:
        async with serve() as served, httpx.AsyncClient(base_url=served.url) as client:
            served.metrics.generated_tokens.inc(5)
            plain = await client.get("/metrics")
            assert plain.headers["content-type"].startswith("text/plain; version=")
            assert "drafthouse_generated_tokens_total 5.0" in plain.text
            accept = {"accept": "application/openmetrics-text; version=1.0.0"}
            openmetrics = await client.get("/metrics", headers=accept)
            assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            names = {family.name for family in parse_openmetrics(openmetrics.text)}
            assert "drafthouse_generated_tokens" in names

    asyncio.run(run())


def test_a_taken_port_is_one_clear_error() -> None:
    async def run() -> None:
        async with serve() as served:
            port = served.http_server.port
            second = HttpServer(served.engine, served.metrics, host="127.0.0.1", port=port)
            with pytest.raises(OSError, match=f"127.0.0.1:{port}.*--port"):
                await second.start()
            await second.stop()

    asyncio.run(run())


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no socket here is for both")
def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    async def run() -> None:
        async with serve(host="::") as served, httpx.AsyncClient() as client:
            for host in ("127.0.0.1", "[::1]"):
                assert (await client.get(f"http://{host}:{served.http_server.port}/health")).status_code == 200
                async with grpc.aio.insecure_channel(f"{host}:{served.grpc_server.port}") as channel:
                    async with asyncio.timeout(10):
                        await channel.channel_ready()

    asyncio.run(run())


def test_signals_stay_with_the_process() -> None:
    async def run() -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        async with serve():
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: ",
        # Whole, then the beginning of another on the same connection.
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"GET",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234",
    ],
)
def test_a_request_that_never_comes_whole_is_not_waited_for(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.http_server._REQUEST_S", 0.3)

    async def run() -> None:
        async with serve() as served, asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.http_server.port)
            writer.write(sent)
            answers = b""
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(1000):
                    answers += part
                    # More of it, slowly, is no reason to wait on.
                    writer.write(b"x")
            assert answers.count(b"200 OK") == sent.count(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.close()

    asyncio.run(run())


def test_a_connection_that_waits_between_requests_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.http_server._REQUEST_S", 0.3)

    async def run() -> None:
        async with serve() as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.http_server.port)
            for _ in range(2):
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200 OK" in await reader.readuntil(b"}")
                await asyncio.sleep(0.6)
            writer.close()

    asyncio.run(run())
