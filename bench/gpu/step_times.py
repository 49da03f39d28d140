"""Which whole steps are timed, and what a time says. Pure."""

from dataclasses import dataclass
from typing import get_args

from shard.layers.quantize import Quantization


@dataclass(frozen=True, slots=True)
class StepCase:
    """`batch` sequences of `context` committed tokens, each with so many drafts to check."""

    batch: int
    context: int
    drafts: int
    quantize: Quantization | None = None


STEP_CASES = (
    *(StepCase(1, 1024, drafts) for drafts in (0, 15, 63)),
    *(StepCase(batch, 1024, 0) for batch in (8, 32, 128)),
    *(StepCase(batch, 8192, 0) for batch in (1, 8, 32)),
    *(
        StepCase(batch, 1024, drafts, quantize)
        for quantize in get_args(Quantization)
        for batch, drafts in ((1, 0), (1, 15), (32, 0))
    ),
)
PROMPT_LENGTHS = (128, 1024, 4096)
# Of transformers; each compiles for a minute.
PEER_CASES = (StepCase(1, 1024, 0),)


@dataclass(frozen=True, slots=True)
class StepTime:
    """`read_bytes`: weights and context, which a step cannot do without reading."""

    case: StepCase
    step_s: float
    read_bytes: int

    @property
    def bandwidth(self) -> float:
        return self.read_bytes / self.step_s


@dataclass(frozen=True, slots=True)
class PromptStepTime:
    """A prompt of `length` tokens in one step; `operations` are those of its products with the weights, a multiply-add
    counted as two."""

    length: int
    step_s: float
    operations: int

    @property
    def speed(self) -> float:
        """Operations per second."""
        return self.operations / self.step_s
