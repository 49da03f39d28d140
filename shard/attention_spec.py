"""How a layer attends, beyond who follows whom: what a family's configuration says of it. Pure data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """`scale` multiplies the scores; with a `softcap` c they become c * tanh(score / c); with a `window` w a row sees
    the last w positions, itself included."""

    scale: float
    window: int | None = None
    softcap: float | None = None
