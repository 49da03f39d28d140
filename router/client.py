"""A client for a shell: `python -m router.client "a question"` streams the answer and says what speculation did.

Owns its flags and its two lines of output. Knows the public service and nothing else of the router.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

import grpc

from drafthouse.v1 import generation_pb2, generation_pb2_grpc

# As shells have them.
_INTERRUPTED, _NOBODY_READS = 130, 141


@dataclass(slots=True)
class _Summary:
    """Times are of time.perf_counter(), in seconds."""

    start_s: float
    first_s: float | None = None
    last: generation_pb2.GenerateResponse | None = None

    def line(self, end_s: float) -> str:
        if self.last is None or self.first_s is None:
            return "no answer"
        num_tokens = self.last.usage.generated_tokens
        stats = self.last.speculation
        return (
            f"{num_tokens} tokens, {num_tokens / max(end_s - self.start_s, 1e-9):.1f} tokens/s, "
            f"first token after {self.first_s - self.start_s:.3f} s, "
            f"{num_tokens / max(stats.steps, 1):.2f} tokens per step, "
            f"{stats.drafted_tokens} drafted, {stats.accepted_tokens} accepted"
        )


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 after an error, 130 after Ctrl-C and 141 where nobody reads any more, which also cancel
    the request."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may hold what a terminal cannot show.
        sys.stdout.reconfigure(errors="replace")
    # A proxy is for the web; the library would take it even for this machine.
    with grpc.insecure_channel(options.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        # Closing the channel cancels the call, also where the interrupt comes before there is a name for it.
        try:
            call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(_request(options))
            summary = _stream(call, sys.stdout)
        except KeyboardInterrupt:
            print("\ncancelled", file=sys.stderr)
            return _INTERRUPTED
        except BrokenPipeError:
            # What is left in the buffer would be an error again at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _NOBODY_READS
        except grpc.RpcError as error:
            print(f"error: {_reason(error, options.address)}", file=sys.stderr)
            return 1
    print(summary, file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m router.client", description="Ask a Drafthouse server.")
    parser.add_argument("prompt", type=_text)
    parser.add_argument("--address", default="localhost:3001", help="host:port of the gRPC service (%(default)s)")
    parser.add_argument("--max-new-tokens", type=_unsigned(32), help="unset: up to the model's length limit")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=_unsigned(32), default=0, help="0 keeps all tokens")
    parser.add_argument("--seed", type=_unsigned(64), help="of the sampling; drawn by the server when unset")
    parser.add_argument(
        "--speculate",
        type=_unsigned(32),
        help="how many tokens ahead drafts may reach, 0 for none; unset, and at most: the server's",
    )
    parser.add_argument("--raw", action="store_true", help="send the prompt as it is, without the chat template")
    parser.add_argument("--system", type=_text, help="a system message before the prompt")
    return parser


def _text(argument: str) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("is not valid UTF-8") from error
    return argument


def _unsigned(bits: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) >= 2**bits:
            raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**bits - 1}, not {text!r}")
        return int(text)

    return parse


def _request(options: argparse.Namespace) -> generation_pb2.GenerateRequest:
    request = generation_pb2.GenerateRequest()
    if options.raw:
        request.text = options.prompt
    else:
        if options.system is not None:
            request.chat.messages.add(role="system", content=options.system)
        request.chat.messages.add(role="user", content=options.prompt)
    request.sampling.temperature = options.temperature
    request.sampling.top_p = options.top_p
    request.sampling.top_k = options.top_k
    if options.seed is not None:
        request.sampling.seed = options.seed
    if options.max_new_tokens is not None:
        request.stopping.max_new_tokens = options.max_new_tokens
    if options.speculate is not None:
        request.speculate = options.speculate
    return request


def _stream(call: Iterator[generation_pb2.GenerateResponse], output: TextIO) -> str:
    """Writes the text as it comes; returns the line that sums it up."""
    summary = _Summary(start_s=time.perf_counter())
    for response in call:
        summary.first_s = summary.first_s or time.perf_counter()
        summary.last = response
        output.write(response.text)
        output.flush()
    end_s = time.perf_counter()
    output.write("\n")
    output.flush()
    return summary.line(end_s)


def _reason(error: grpc.RpcError, address: str) -> str:
    if not isinstance(error, grpc.Call):
        return str(error)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"{address} does not serve: {error.details()}"
    return f"{error.details()} ({error.code().name})"


if __name__ == "__main__":
    sys.exit(main())
