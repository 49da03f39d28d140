"""Steps that look at no value on the host, as on a GPU, bring what exact ones bring. On CPU, by the same code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shard.config import parse_args
from shard.model_runner import ModelRunner
from shard.plan import NewSequence, Sampling, SequenceResult, SequenceStep, StepPlan
from shard.rank import build_rank
from shard.speculation import DraftPrice, Proposal
from tests.checkpoints import make_checkpoint
from tests.medusa_checkpoints import random_heads, write_heads
from tests.shard.recorded import look_at_nothing

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
SAMPLED = Sampling(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, seed=5)
FILTERED = Sampling(temperature=1.2, top_k=8, top_p=0.9, min_p=0.01, seed=6)
# Few tokens, so that a guess is right now and then.
VOCAB = 19
PROMPTS = [[5, 6, 7, 8] * 4, [9, 10, 11] * 3, [*range(2, 17), *range(2, 17)], [3, 4] * 5]
LIMITS = [40, 24, 60, 33]
BLOCKS = 6

# What a GPU would have to be waited for: a result whose size depends on values, or a value itself.
_READING_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")


class _NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(_READING_OPS), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "an index by truth waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refused(self: Tensor, *_: object) -> Any:
        raise AssertionError("a value was read on the host")

    made = torch.tensor

    def made_on_the_host(*args: Any, **kwargs: Any) -> Tensor:
        assert "device" not in kwargs, "a blocking copy to the device"
        return made(*args, **kwargs)

    with monkeypatch.context() as patch, _NoReading():
        patch.setattr(torch, "tensor", made_on_the_host)
        for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy"):
            patch.setattr(Tensor, name, refused)
        yield


@dataclass
class Run:
    """Plans for four sequences in four slots until all have ended, and one step more."""

    runner: ModelRunner
    proposal: Proposal
    samplings: list[Sampling]
    launch: Callable[[StepPlan], Any]
    # Of log-probabilities.
    digits: int = 9

    def __post_init__(self) -> None:
        self.proposing_ns: list[int] = []

    def results(self) -> list[list[SequenceResult]]:
        lengths = [len(prompt) for prompt in PROMPTS]
        # The third prompt comes in two chunks, the second of them beside the others' first tokens.
        chunks = [(slot, 0, length if slot != 2 else 20) for slot, length in enumerate(lengths)]
        new = [self._new(slot) for slot in range(4)]
        steps = [self._step(slot, start, length, self._blocks(slot)) for slot, start, length in chunks]
        results = [self._run(StepPlan(1, [], new, steps, self.proposal))]
        for step_id in range(2, 60):
            steps = [self._step(slot) for slot in range(4)]
            if step_id == 2:
                steps[2] = self._step(2, 20, lengths[2] - 20)
            # Nobody is asked at every fifth step, and one sequence never.
            proposal = Proposal.NONE if step_id % 5 == 0 else self.proposal
            prices = (DraftPrice(0, 0.01), DraftPrice(6, 0.2)) if step_id % 2 else ()
            results.append(self._run(StepPlan(step_id, [], [], steps, proposal, prices)))
        return results

    def _run(self, plan: StepPlan) -> list[SequenceResult]:
        result = self.launch(plan)()
        self.proposing_ns.append(result.proposing_ns)
        # Sums over rows that are not there are not the same to the last bit.
        return [replace(r, logprobs=[round(value, self.digits) for value in r.logprobs]) for r in result.sequences]

    def _new(self, slot: int) -> NewSequence:
        return NewSequence(
            slot=slot,
            token_ids=PROMPTS[slot],
            sampling=self.samplings[slot],
            max_num_tokens=LIMITS[slot],
            stop_token_ids=[17, 18] if slot == 3 else [],
            logprobs=slot == 1,
        )

    def _blocks(self, slot: int) -> list[int]:
        return [1 + slot + 4 * i for i in range(BLOCKS)]

    def _step(self, slot: int, start: int = 0, length: int = 0, blocks: list[int] | None = None) -> SequenceStep:
        asks, size = slot != 0, min(5, self.runner.states.draft_token_ids.shape[1])
        return SequenceStep(
            slot,
            blocks or [],
            chunk_start=start,
            chunk_length=length,
            verify=0 if length else size,
            propose=size * asks,
            propose_depth=3 * asks,
        )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), vocab=VOCAB, dtype=torch.float64)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_heads(folder, random_heads(3, 1, 72, VOCAB, tied=False), "v1", base=str(checkpoint))
    return folder


def make_runner(checkpoint: Path, *flags: str, dtype: str = "float64") -> ModelRunner:
    paths = (f"--model-path={checkpoint}", "--uds-path=unused", "--run-dir=unused", f"--dtype={dtype}", "--threads=1")
    sizes = ("--speculate=3", "--max-total-tokens=96", "--max-batch-size=4", "--max-batch-total-tokens=480")
    return build_rank(parse_args([*paths, *sizes, *flags])).runner


@pytest.mark.parametrize("with_heads", [False, True])
@pytest.mark.parametrize("samplings", [[GREEDY] * 4, [GREEDY, SAMPLED, FILTERED, GREEDY]])
def test_padded_steps_bring_the_same(
    samplings: list[Sampling], with_heads: bool, checkpoint: Path, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--medusa-path={heads}"] if with_heads else []
    proposal = Proposal.HEADS if with_heads else Proposal.LOOKUP
    exact = make_runner(checkpoint, *flags)
    expected = Run(exact, proposal, samplings, exact.launch).results()
    look_at_nothing(monkeypatch)
    padded = make_runner(checkpoint, *flags)

    def unseen(plan: StepPlan) -> Any:
        with nothing_is_read(monkeypatch):
            return padded.launch(plan)

    assert Run(padded, proposal, samplings, unseen).results() == expected
    results = [result for step in expected for result in step]
    assert any(result.accepted > 0 for result in results)
    assert any(result.accepted < result.drafted for result in results)
