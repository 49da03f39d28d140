"""`python -m bench.soak [FLAGS OF THE LAUNCHER]`: mixed traffic on a real service whose shards are killed now and then.

The same requests come again and again: greedy, sampled, filtered, with stop strings, log-probabilities or two choices,
each time with another bound of drafts and beside others. An answer must be the one that its request had first, to the
token. Some clients leave in the middle, some have no time, some read slowly, and blocks of the KV cache are few, so
that sequences are preempted. In the end nothing may be held. Exit codes: 0 all that is so, 1 not.

In 16 bits on a GPU near ties fall this way and that: take --dtype float32 there.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from bench.config import positive
from bench.errors import told_to_user
from bench.metrics import read_held
from bench.processes import child_running, children
from bench.prompts import load_prompts
from bench.say import say
from bench.server import Server, launched
from drafthouse.v1 import generation_pb2, generation_pb2_grpc
from launcher.machine import usable_cores

_NUM_QUESTIONS = 48
# Kinds of clients, by how many there are.
_PATIENT, _LEAVES, _IS_LATE, _READS_SLOWLY = "patient", "leaves", "is late", "reads slowly"
_CLIENTS = (*[_PATIENT] * 6, _LEAVES, _IS_LATE, _READS_SLOWLY)
_SLOW_S, _LATE_S, _MOST_S = 0.05, (0.05, 2.0), 300.0
_SPECULATE = (None, 0, 1, 3)
# Few enough for sequences to be preempted, and enough for the longest.
_FLAGS = ["--max-total-tokens=1024", "--max-batch-total-tokens=1600", "--max-batch-size=16", "--speculate=auto"]
_REPORT_S, _REST_S = 15.0, 1.0


@dataclass(slots=True)
class Choice:
    """What came of one choice of a request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    num_logprobs: int = 0
    finish_reason: int = 0


class Book:
    """What each request was answered first, and what went otherwise since."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._first: dict[int, list[Choice]] = {}

    def note(self, number: int, choices: list[Choice], *, logprobs: bool) -> None:
        """A complete answer to request `number`."""
        self.counts["answers"] += 1
        for index, choice in enumerate(choices):
            if not choice.finish_reason:
                self.faults.append(f"request {number}: choice {index} has no end")
            if logprobs and choice.num_logprobs != len(choice.token_ids):
                self.faults.append(
                    f"request {number}: {choice.num_logprobs} log-probabilities of {len(choice.token_ids)} tokens"
                )
        if self._first.setdefault(number, choices) != choices:
            first, now = ([choice.text for choice in one] for one in (self._first[number], choices))
            self.faults.append(f"request {number}: {now} and not {first} as before")


def questions() -> list[generation_pb2.GenerateRequest]:
    """The same at each call."""
    rng, made = random.Random(0), []
    prompts = [prompt for workload in load_prompts(8).values() for prompt in workload]
    for number in range(_NUM_QUESTIONS):
        request = generation_pb2.GenerateRequest(logprobs=number % 3 == 0, n=1 + (number % 7 == 0))
        request.chat.messages.add(role="user", content=prompts[number % len(prompts)].text)
        request.sampling.temperature = rng.choice([0.0, 0.0, 0.7, 1.3])
        request.sampling.seed = number + 1
        request.sampling.top_k = rng.choice([0, 0, 20])
        request.sampling.top_p = rng.choice([1.0, 0.9])
        request.stopping.max_new_tokens = rng.choice([1, 2, 5, 40, 120, 300])
        request.stopping.ignore_eos = number % 2 == 0
        request.stopping.stop_strings.extend(rng.choice([[], [], ["the"], ["\n\n", "."]]))
        made.append(request)
    return made


async def ask(
    stub: "generation_pb2_grpc.GenerationServiceAsyncStub",
    number: int,
    question: generation_pb2.GenerateRequest,
    book: Book,
    rng: random.Random,
) -> None:
    """Request `number`, with any bound of drafts and by any kind of client."""
    request, client = generation_pb2.GenerateRequest(speculate=rng.choice(_SPECULATE)), rng.choice(_CLIENTS)
    request.MergeFrom(question)
    choices = [Choice() for _ in range(request.n)]
    leaves_after = rng.randrange(30) if client == _LEAVES else None
    call = stub.Generate(request, timeout=rng.uniform(*_LATE_S) if client == _IS_LATE else _MOST_S)
    num_messages = 0
    try:
        async for message in call:
            choice = choices[message.index]
            if choice.finish_reason:
                book.faults.append(f"request {number}: more after the end")
            choice.token_ids += message.token_ids
            choice.text += message.text
            choice.num_logprobs += len(message.logprobs)
            choice.finish_reason = message.finish_reason
            if num_messages == leaves_after:
                call.cancel()
                book.counts[client] += 1
                return
            num_messages += 1
            if client == _READS_SLOWLY:
                await asyncio.sleep(_SLOW_S)
    except grpc.aio.AioRpcError as error:
        if client == _IS_LATE and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            book.counts[client] += 1
        else:
            book.faults.append(f"request {number}: {error.code().name}: {error.details()}")
        return
    book.note(number, choices, logprobs=request.logprobs)


async def soak(server: Server, *, minutes: float, users: int, kill_every_s: float) -> Book:
    """Traffic of so many users at a time, and every so often a shard is killed."""
    book, rng, asked = Book(), random.Random(1), questions()
    end_s = time.monotonic() + 60 * minutes

    async def use(stub: "generation_pb2_grpc.GenerationServiceAsyncStub") -> None:
        while time.monotonic() < end_s:
            number = rng.randrange(len(asked))
            await ask(stub, number, asked[number], book, rng)

    async def kill() -> None:
        while True:
            await asyncio.sleep(kill_every_s)
            # None, or not even an agent, while they are started again.
            with suppress(LookupError, IndexError, ProcessLookupError):
                os.kill(rng.choice(children(child_running(server.pid, "shard.agent"), name="shard-")), signal.SIGKILL)
                book.counts["killed shards"] += 1

    async def report() -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            say(f"{end_s - time.monotonic():.0f} s left: {_summary(book)}")

    beside = [asyncio.create_task(kill()), asyncio.create_task(report())]
    try:
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            stub: generation_pb2_grpc.GenerationServiceAsyncStub = generation_pb2_grpc.GenerationServiceStub(channel)
            await asyncio.gather(*(use(stub) for _ in range(users)))
        await asyncio.sleep(_REST_S)
    finally:
        for task in beside:
            task.cancel()
    book.faults += [f"{held} are held at the end" for held in read_held(server.metrics_url)]
    return book


def _summary(book: Book) -> str:
    counts = ", ".join(f"{what} {count}" for what, count in sorted(book.counts.items()))
    return f"{counts}; {len(book.faults)} faults"


@told_to_user()
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--users", type=positive, default=24, help="requests at a time")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of each shard")
    parser.add_argument("--model-id", help="as the launcher's")
    own, flags = parser.parse_known_args()
    with launched(model_id=own.model_id, threads=own.threads, flags=[*_FLAGS, *flags], prefix_caching=True) as server:
        book = asyncio.run(soak(server, minutes=own.minutes, users=own.users, kill_every_s=own.kill_every))
    print(_summary(book))
    for fault in book.faults[:10]:
        print(fault)
    return 1 if book.faults or not book.counts["answers"] else 0


if __name__ == "__main__":
    sys.exit(main())
