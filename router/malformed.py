"""A message that is none of its kind is its sender's error: the library would answer UNKNOWN, and log a traceback.

Knows no RPC.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from router.errors import InvalidRequest
from router.grpc_errors import to_grpc_status


class MalformedMessages(grpc.aio.ServerInterceptor):
    def __init__(self, service: str, note: Callable[[str], None]) -> None:
        """Of this service, whose methods are coroutines that take one message; `note` is told each one's method."""
        self._prefix = f"/{service}/"
        self._note = note

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        # None: there is no such method.
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        parse, work = handler.request_deserializer, handler.unary_stream or handler.unary_unary

        async def parsed(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                request = parse(message)
            except DecodeError as error:
                self._note(handler_call_details.method.removeprefix(self._prefix))
                await context.abort_with_status(to_grpc_status(InvalidRequest("request", f"cannot be read: {error}")))
            return await work(request, context)

        make = grpc.unary_stream_rpc_method_handler if handler.unary_stream else grpc.unary_unary_rpc_method_handler
        return make(parsed, response_serializer=handler.response_serializer)
