"""The router's life: start the servers, run the engine until a signal, drain, stop."""

import asyncio
import contextlib
import logging
import signal

from router.config import RouterConfig
from router.engine import Engine
from router.grpc_server import GrpcServer
from router.http_server import HttpServer
from router.metrics import Metrics
from router.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# After the drain every stream has ended; this is for their last bytes.
_CLOSE_GRACE_S = 2.0


class Server:
    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._metrics = Metrics()
        self._tokenizer = Tokenizer.from_folder(config.model_path)
        self._stop = asyncio.Event()
        self._engine = Engine(config, tokenizer=self._tokenizer, metrics=self._metrics)
        self._http = HttpServer(self._engine, self._metrics, host=config.hostname, port=config.port)
        self._grpc = GrpcServer(
            self._engine,
            self._tokenizer,
            self._metrics,
            host=config.hostname,
            port=config.grpc_port,
            payload_limit=config.payload_limit,
            max_concurrent_requests=config.max_concurrent_requests,
        )

    async def start(self) -> None:
        """Opens the ports. Raises OSError where one is taken."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        await self._http.start()
        await self._grpc.start()
        log.info("http on port %d, grpc on port %d", self._http.port, self._grpc.port)

    async def serve(self) -> None:
        engine = asyncio.create_task(self._engine.run())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([engine, stop], return_when=asyncio.FIRST_COMPLETED)
        await self._shutdown(engine)

    async def _shutdown(self, engine: asyncio.Task[None]) -> None:
        """Not ready first, then drained, then gone. An engine that failed is raised after the ports are closed."""
        if not engine.done():
            log.info("draining")
            await self._engine.drain(self._config.graceful_termination_timeout)
            engine.cancel()
        await self._grpc.stop(_CLOSE_GRACE_S)
        await self._http.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await engine
        log.info("stopped")
