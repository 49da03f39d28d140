"""`python -m bench.host`: what router and shard do on the host for a step, in microseconds, without gRPC and model.

Both are in this process, and all between them is theirs: a scheduler plans, a shard lays the step out as for a GPU and
hands it to one that does nothing, and what that decided comes back to the streams. A third of the drafts are right.
"""

import argparse
import gc
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch

from bench.byte_tokenizer import byte_tokenizer
from bench.statistic import table
from drafthouse.v1 import shard_pb2
from router.budget import BudgetConfig, BudgetController
from router.detokenizer import Detokenizer
from router.metrics import Metrics
from router.observer import Observer
from router.plan import Phase
from router.proposal import Proposal
from router.request import GenerationRequest
from router.scheduler import Scheduler, SchedulerConfig
from router.sequence import SamplingParams, Sequence
from router.step_costs import StepCost, StepCosts
from router.stream import Stream
from router.tokenizer import Tokenizer
from router.wire import plan_to_bytes, result_from_proto
from shard.clock import Stopwatch
from shard.decision import Committed, Decision
from shard.device_step import StepKind
from shard.layout import StepRows
from shard.model_runner import ModelRunner
from shard.report import Outcome
from shard.states import SequenceStates
from shard.wire import plan_from_proto, result_to_proto

_BATCHES, _DRAFTS = (1, 8, 32, 128), (0, 3)
_NUM_PROMPT_TOKENS, _BLOCK_SIZE, _MAX_TOTAL_TOKENS = 40, 16, 2048
_DEPTH, _ACCEPTED = 3, 1
# Prompts, and shapes that come for the first time, are in the first steps.
_WARM_STEPS, _STEPS = 20, 300
_HOST = torch.device("cpu")
# A step of one and of very many sequences; a row takes next to nothing, so that whoever wants drafts is asked for them.
_COSTS = [
    StepCost(number, number, number, proposal, seconds=0.01 + number * 1e-9, proposing_s=asked * 1e-9)
    for number in (1, 4096)
    for proposal, asked in ((Proposal.NONE, 0), (Proposal.LOOKUP, 1))
]


class _Device:
    """A DeviceStep, and its Capture, that does nothing."""

    drafter = None
    group = SimpleNamespace(rank=0, all_reduce=lambda tensor: tensor)
    cache = SimpleNamespace(max_step_rows=max(_BATCHES) * (1 + max(_DRAFTS)))

    def __init__(self, batch: int) -> None:
        self.states = SequenceStates(
            num_slots=batch,
            max_total_tokens=_MAX_TOTAL_TOKENS,
            tree_size=_DEPTH,
            block_size=_BLOCK_SIZE,
            device=_HOST,
        )
        self.states.is_readable = False

    def run(self, rows: StepRows, kind: StepKind, *_: object) -> Outcome:
        number, checked = len(rows.yielding), rows.width - 1
        accepted = _ACCEPTED if checked else 0

        def each(value: int, *shape: int) -> torch.Tensor:
            return torch.full((number, *shape), value, dtype=torch.int64)

        decision = Decision(
            token_ids=each(65, rows.width),
            path=each(0, rows.width),
            num_emitted=each(1 + accepted),
            num_accepted=each(accepted),
            num_checked=each(checked),
            finished=each(0),
        )
        counts = each(0, 2, 3, _DEPTH)
        counts[:, 0, 0, :checked] = 1
        counts[:, 1, 0, :accepted] = 1
        return Outcome(Committed(decision, each(0)), None, counts if checked else None)

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        return run(), lambda: None

    def has_room(self) -> bool:
        return True

    def timer(self) -> "_Timer":
        return _Timer(_HOST)


class _Timer(Stopwatch):
    marks = torch.zeros(2, dtype=torch.int64)


class _Times(defaultdict[str, list[float]]):
    """Microseconds by part of a step."""

    def __init__(self) -> None:
        super().__init__(list)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        self[part].append(1e6 * (time.perf_counter() - begin_s))


def measure(batch: int, drafts: int, *, num_steps: int = _STEPS) -> dict[str, float]:
    """Means by part: not every step counts evidence in."""
    scheduler = Scheduler(
        SchedulerConfig(
            num_blocks=batch * _MAX_TOTAL_TOKENS // _BLOCK_SIZE,
            block_size=_BLOCK_SIZE,
            max_batch_size=batch,
            max_batch_tokens=batch * _NUM_PROMPT_TOKENS + 1,
            max_draft_tokens=batch * _DEPTH,
        ),
        BudgetController(BudgetConfig(_DEPTH, _DEPTH, ("ngram",)), StepCosts(_COSTS)),
    )
    tokenizer = Tokenizer(byte_tokenizer())
    streams = {stream.sequence: stream for stream in (_stream(number, drafts, tokenizer) for number in range(batch))}
    for sequence in streams:
        scheduler.add(sequence)
    observer, device = Observer(Metrics(), num_shards=1), _Device(batch)
    runner = ModelRunner(cast(Any, device), capture=device)
    times, sent = _Times(), deque[tuple[Phase, bytes]]()
    for number in range(_WARM_STEPS + num_steps):
        if number == _WARM_STEPS:
            times.clear()
        while len(sent) < 2:
            with times.of("plan"):
                plan = scheduler.schedule()
            assert plan is not None
            with times.of("plan to bytes"):
                data = plan_to_bytes(plan, shard_incarnation=1, router_incarnation=2)
            sent.append((plan.phase, data))
        phase, data = sent.popleft()
        with times.of("read plan"):
            steps = plan_from_proto(shard_pb2.DecodeRequest.FromString(data).plan)
        with times.of("launch"):
            finish = runner.launch(steps)
        with times.of("finish"):
            brought = finish()
        with times.of("reply to bytes"):
            reply = result_to_proto(brought, session=(1, 2)).SerializeToString()
        with times.of("read reply"):
            result = result_from_proto(shard_pb2.StepResult.FromString(reply), most_depth=_DEPTH)
        with times.of("take reply"):
            progress = scheduler.update(result)
        with times.of("pass on"):
            for one in progress:
                stream = streams[one.sequence]
                kept, _ = stream.take(one.result, one.finish_reason)
                observer.note_output(stream, one.result, num_tokens=kept)
                # What is sent is not this step's affair.
                stream.token_ids.clear()
            observer.note_step(phase, result)
    return {part: statistics.fmean(values) for part, values in times.items()}


def _stream(number: int, drafts: int, tokenizer: Tokenizer) -> Stream:
    prompt = [65 + (7 * place + number) % 26 for place in range(_NUM_PROMPT_TOKENS)]
    sequence = Sequence(number, list(prompt), len(prompt), _MAX_TOTAL_TOKENS, num_speculative_tokens=drafts)
    request = GenerationRequest(
        request_id=str(number),
        prompt_token_ids=prompt,
        sampling=SamplingParams(),
        max_new_tokens=_MAX_TOTAL_TOKENS,
        stop_strings=(),
        stop_token_ids=frozenset(),
        num_speculative_tokens=drafts,
        logprobs=False,
        deadline_s=None,
    )
    return Stream(request, sequence, Detokenizer(tokenizer, prompt), arrived_s=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=_BATCHES)
    torch.set_num_threads(1)
    # A pass of the collector looks at all imported modules; while a service runs hardly one comes.
    gc.freeze()
    rows = []
    for batch in parser.parse_args().sequences:
        for drafts in _DRAFTS:
            found = measure(batch, drafts)
            rows.append([str(batch), str(drafts), *(f"{us:.0f}" for us in found.values())])
    print(table(["sequences", "drafts", *found], rows))


if __name__ == "__main__":
    main()
