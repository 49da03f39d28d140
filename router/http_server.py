"""The HTTP port: health for probes and metrics for Prometheus.

Owns the socket, the routes and the server's life inside the router's event loop. Signals belong to the process, not
to this server. Knows nothing of generation.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import h11
import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from router.metrics import Metrics
from router.request import GenerationEngine

_START_POLL_S = 0.01
# A reader that does not take its answer must not keep the process alive.
_STOP_TIMEOUT_S = 2
# A request has to be whole so soon after its connection or its first byte: connections that wait hold descriptors.
_REQUEST_S = 10.0
# Where there are no descriptors left asyncio tries, and logs, so many times at once.
_BACKLOG = 64


class HttpServer:
    def __init__(self, engine: GenerationEngine, metrics: Metrics, *, host: str, port: int) -> None:
        """Port 0 takes a free one."""
        self._engine = engine
        self._metrics = metrics
        self._host = host
        self.port = port
        app = Starlette(routes=[Route("/health", self._health), Route("/metrics", self._exposition)])
        # No log_config: the process has set up logging, and uvicorn would replace it.
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Connection,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_STOP_TIMEOUT_S,
                backlog=_BACKLOG,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """`port` is the one that is listened on afterwards. Raises OSError when it cannot be had."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # "::" takes IPv4 as well, as it does for gRPC.
        both = self._host == "::" and socket.has_dualstack_ipv6()
        try:
            listener = socket.create_server((self._host, self.port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise OSError(
                f"cannot listen on {self._host}:{self.port}: {error.strerror or error}; choose another with --port"
            ) from error
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(_START_POLL_S)
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    async def _health(self, request: Request) -> JSONResponse:
        if self._engine.is_ready:
            return JSONResponse({"status": "ok"})
        status = "draining" if self._engine.is_draining else "not ready"
        return JSONResponse({"status": status}, status_code=503)

    async def _exposition(self, request: Request) -> Response:
        """The text format, or OpenMetrics for who accepts it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"content-type": content_type})


class _Connection(H11Protocol):
    """One that does not wait for requests without end, as uvicorn's own do."""

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_request(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_waiting()
        elif self._timeout is None:
            self._timeout = self.loop.call_later(_REQUEST_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
