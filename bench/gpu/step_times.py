"""Which whole steps are timed, and what a time says. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepCase:
    """`batch` sequences of `context` committed tokens, each with so many drafts to check."""

    batch: int
    context: int
    drafts: int


STEP_CASES = (
    *(StepCase(1, 1024, drafts) for drafts in (0, 15, 63)),
    *(StepCase(batch, 1024, 0) for batch in (8, 32, 128)),
    *(StepCase(batch, 8192, 0) for batch in (1, 8, 32)),
)


@dataclass(frozen=True, slots=True)
class StepTime:
    """`read_bytes`: weights and context, which a step cannot do without reading."""

    case: StepCase
    step_s: float
    read_bytes: int

    @property
    def bandwidth(self) -> float:
        return self.read_bytes / self.step_s
