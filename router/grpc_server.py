"""The public gRPC port: the generation service, standard health and reflection, and the transport's limits.

Owns the socket and its settings. Knows nothing of what the services do.
"""

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from drafthouse.v1 import generation_pb2, generation_pb2_grpc
from router.generation_service import GenerationService
from router.health import HealthService
from router.malformed import MalformedMessages
from router.metrics import Metrics
from router.request import GenerationEngine
from router.tokenizer import Tokenizer

_SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

# A client that vanished without a word is noticed after the interval and the timeout; clients may ask as often.
_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# The engine turns requests away when they are whole. Before that each holds up to a message's bytes, and answers that
# nobody reads stay, so calls are bounded too: above this they are refused unread.
_RPCS_PER_REQUEST, _OTHER_RPCS = 4, 100


class GrpcServer:
    def __init__(
        self,
        engine: GenerationEngine,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        host: str,
        port: int,
        payload_limit: int,
        max_concurrent_requests: int,
    ) -> None:
        """`payload_limit` bounds a request message, in bytes; a few times `max_concurrent_requests` of them may be on
        their way at once. Port 0 takes a free one. Needs a running event loop."""
        service = GenerationService(engine, tokenizer, metrics)
        self._server = grpc.aio.server(
            interceptors=[MalformedMessages(_SERVICE_NAME, service.note_malformed)],
            maximum_concurrent_rpcs=_RPCS_PER_REQUEST * max_concurrent_requests + _OTHER_RPCS,
            options=[
                ("grpc.max_receive_message_length", payload_limit),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second router would share the port silently.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_TIMEOUT_MS),
            ],
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(engine, frozenset({_SERVICE_NAME})), self._server)
        reflection.enable_server_reflection((_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._host = host
        self.port = port

    async def start(self) -> None:
        """`port` is the one that is listened on afterwards. Raises OSError when it cannot be had."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {address}: the port is taken or not allowed; choose another with --grpc-port"
            ) from error
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Accepts nothing new at once, and cancels what still runs after `grace_s` seconds."""
        await self._server.stop(grace_s)
