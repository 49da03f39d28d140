"""The standard health service (grpc.health.v1), answered from the engine's state at the moment of asking.

Owns which service names are known. Keeps no state of its own, so it cannot be out of date.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.request import GenerationEngine

_WATCH_INTERVAL_S = 0.2


class HealthService(health_pb2_grpc.HealthServicer):
    def __init__(self, engine: GenerationEngine, service_names: frozenset[str]) -> None:
        self._engine = engine
        # The empty name asks for the server as a whole.
        self._service_names = service_names | {""}

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._service_names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Sends the status, then each change of it, until the client leaves."""
        sent = None
        while True:
            status = self._status(request.service)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def _status(self, service_name: str) -> Any:
        if service_name not in self._service_names:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._engine.is_ready:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING
