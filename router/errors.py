"""What a request can end with besides an answer. Validation, tokenizer and engine raise these, the gRPC edge
maps them."""


class RequestError(Exception):
    """A request that cannot be served; the message is for its sender."""


class InvalidRequest(RequestError):
    """The request itself is wrong. `field` is the path of the field at fault, as in the proto."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Overloaded(RequestError):
    """The queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):
    """The service is starting or draining, or its router failed."""


class ShardsDied(RequestError):
    """Groups of shards were lost with this request, the last with it alone: another would be, too."""


class DeadlineExceeded(RequestError):
    """The request's deadline passed before its last token."""
