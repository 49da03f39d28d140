import asyncio
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
