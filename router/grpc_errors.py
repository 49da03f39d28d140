"""How an error reaches a gRPC client: the one table from the router's errors to status codes and rich details.

Details follow google.rpc's error model (google/rpc/error_details.proto). Knows no RPC.
"""

from datetime import timedelta

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from router.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestError, Unavailable

# The `status` label of drafthouse_requests_total belongs to the same decision.
_TABLE: dict[type[Exception], tuple[int, str]] = {
    InvalidRequest: (code_pb2.INVALID_ARGUMENT, "invalid"),
    Overloaded: (code_pb2.RESOURCE_EXHAUSTED, "overloaded"),
    DeadlineExceeded: (code_pb2.DEADLINE_EXCEEDED, "deadline"),
    Unavailable: (code_pb2.UNAVAILABLE, "error"),
}
_INTERNAL: tuple[int, str] = (code_pb2.INTERNAL, "error")


def request_status(error: Exception) -> str:
    """The label under which a request that ended so is counted."""
    return _TABLE.get(type(error), _INTERNAL)[1]


def to_grpc_status(error: Exception) -> grpc.Status:
    """Messages of RequestError are for the client; of any other error it learns only that there was one."""
    if not isinstance(error, RequestError):
        return _status(code_pb2.INTERNAL, "internal error; the router's log has the cause")
    code, _ = _TABLE.get(type(error), _INTERNAL)
    return _status(code, str(error), _detail(error))


def _detail(error: RequestError) -> Message | None:
    match error:
        case InvalidRequest(field=field):
            bad_request: Message = error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=str(error))]
            )
            return bad_request
        case Overloaded(retry_after_s=retry_after_s):
            retry_info: Message = error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=retry_after_s))
            return retry_info
        case _:
            return None


def _status(code: int, message: str, detail: Message | None = None) -> grpc.Status:
    status = status_pb2.Status(code=code, message=message)
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    grpc_status: grpc.Status = rpc_status.to_status(status)
    return grpc_status
