"""What a run is asked to do: one frozen value, made from the command line. Flags and their help are in __main__.py."""

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainError


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """`None` means unset. `num_*` are counts; fractions are of 1."""

    model_id: str | None
    revision: str | None
    output: Path
    data: tuple[Path, ...]
    answers: tuple[Path, ...]
    self_prompts: int
    max_prompts: int | None
    max_answer_tokens: int
    sampled_fraction: float
    service: str | None
    version: str
    num_heads: int
    num_layers: int
    epochs: int
    learning_rate: float
    batch_tokens: int
    soft_labels: float
    frequent_tokens: int
    held_out: float
    seed: int
    device: str
    threads: int | None

    @property
    def work(self) -> Path:
        """Where each phase keeps what it has done, so that the same command goes on after a kill."""
        return self.output / "work"

    def checked(self) -> "TrainConfig":
        """This, or TrainError where flags do not fit each other."""
        if not (self.data or self.answers or self.self_prompts):
            raise TrainError("there is nothing to train on: give --data, --self-prompts or --answers")
        if self.frequent_tokens and self.version == "v1":
            raise TrainError("--frequent-tokens is for --version v2: v1 heads have projections of their own")
        if self.version == "v2" and not self.num_layers:
            raise TrainError("--layers 0 leaves nothing to train in v2 heads; give --layers 1 or --version v1")
        return self
