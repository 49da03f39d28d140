"""What is remembered of a step that is under way, for the time when its reply comes. Pure data."""

from dataclasses import dataclass
from typing import NamedTuple

from router.current_costs import TakenStep
from router.plan import StepResult
from router.proposal import Proposal
from router.sequence import Sequence


class OutstandingSequence(NamedTuple):
    """A sequence's part of the step, and the slot that it had then."""

    sequence: Sequence
    slot: int
    chunk_end: int  # 0 for a decode
    # Who had been asked for the drafts that the step checks.
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class OutstandingStep:
    """A step whose reply is not in; `context` are the tokens that its sequences had when it was planned."""

    sequences: list[OutstandingSequence]
    context: int
    # Who is asked for the drafts of the next step, and of how many sequences.
    asked: Proposal
    num_asked: int

    def taken(self, result: StepResult) -> TakenStep | None:
        """None where it had prompts, or where sequences had ended before it."""
        num_sequences = len(self.sequences)
        if len(result.sequences) < num_sequences or any(entry.chunk_end for entry in self.sequences):
            return None
        num_drafts = sum(one.drafted for one in result.sequences)
        return TakenStep(
            num_sequences,
            num_drafts,
            self.context,
            self.asked,
            self.num_asked,
            seconds=result.duration_s - result.proposing_s,
            proposing_s=result.proposing_s,
        )
