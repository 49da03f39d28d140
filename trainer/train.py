"""The training of the heads: batches, learning rate, steps, checkpoints.

All randomness is a function of (seed, step): a run that was killed ends with the same heads as one that was not.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from trainer.errors import TrainError, described
from trainer.features import Features
from trainer.files import fingerprint, save_whole
from trainer.heads import MedusaHead
from trainer.loss import HEAD_DECAY, Columns, choose_columns, head_loss

CHECKPOINT_INTERVAL_S = 60.0
_WARM_UP = 0.05  # share of the steps
# On CPU a step computes so many columns of the vocabulary, see loss.py; a GPU computes all.
_NUM_COMMON = 4096
_NUM_SAMPLED = 1024
# Bytes that the logits of one head may take at a time.
_LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """`batch_tokens`: rows of a step. `soft_labels`: how much of a target is the base's distribution, from 0 to 1."""

    epochs: int
    learning_rate: float
    batch_tokens: int
    soft_labels: float
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole answers, one after the other. `hidden`: [N, h] float32. `targets`: [N, K], -1 past an answer's end."""

    hidden: Tensor
    targets: Tensor

    @classmethod
    def of(cls, features: Features, answers: Sequence[int], num_heads: int) -> "Batch":
        spans = [features.rows(answer) for answer in answers]
        hidden = torch.cat([features.hidden[span.start : span.stop] for span in spans]).float()
        targets = torch.full((len(hidden), num_heads), -1)
        row = 0
        for span in spans:
            tokens = features.token_ids[span.start : span.stop]
            for i in range(min(num_heads, len(span) - 1)):
                targets[row : row + len(span) - 1 - i, i] = tokens[1 + i :]
            row += len(span)
        return cls(hidden, targets)


def train(
    heads: nn.ModuleList,
    lm_head: Tensor,
    features: Features,
    answers: Sequence[int],
    settings: TrainSettings,
    work: Path,
    *,
    made_from: str,
) -> None:
    """Trains `heads` in place on `answers` (their numbers in `features`), going on from a checkpoint in `work`.

    `made_from`: what beside the settings the heads follow from; with another one training begins anew. A damaged
    checkpoint raises TrainError.
    """
    batches = plan_batches([len(features.rows(answer)) for answer in answers], settings)
    common = token_counts(features, answers, len(lm_head)).topk(min(_NUM_COMMON, len(lm_head))).indices
    optimizer = torch.optim.AdamW(heads.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    checkpoint = _Checkpoint(work / "checkpoint.pt", fingerprint(made_from, asdict(settings)), heads, optimizer)
    first = checkpoint.load()
    rows = sum(len(features.rows(answers[i])) for batch in batches for i in batch)
    finished = sum(len(features.rows(answers[i])) for batch in batches[:first] for i in batch)
    saved_s = time.monotonic()
    with tqdm(total=rows, initial=finished, desc="training", unit="token", unit_scale=True) as bar:
        for step in range(first, len(batches)):
            batch = Batch.of(features, [answers[i] for i in batches[step]], len(heads))
            columns = None
            if lm_head.device.type == "cpu":
                generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
                targets = batch.targets[batch.targets >= 0]
                columns = choose_columns(
                    targets, common, vocab_size=len(lm_head), num_sampled=_NUM_SAMPLED, generator=generator
                )
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_share(step, len(batches))
            losses = _step(heads, lm_head, batch, columns, settings.soft_labels)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update(len(batch.hidden))
            bar.set_postfix_str("loss " + " ".join(f"{loss:.3f}" for loss in losses))
            last = step + 1 == len(batches)
            if last or time.monotonic() - saved_s >= CHECKPOINT_INTERVAL_S:
                checkpoint.save(step + 1)
                saved_s = time.monotonic()


def plan_batches(lengths: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """The answers of every step: each answer once per epoch, in an order drawn from the seed."""
    batches: list[list[int]] = []
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        batch: list[int] = []
        rows = 0
        for answer in torch.randperm(len(lengths), generator=generator).tolist():
            batch.append(answer)
            rows += lengths[answer]
            if rows >= settings.batch_tokens:
                batches.append(batch)
                batch, rows = [], 0
        if batch:
            batches.append(batch)
    return batches


def learning_rate_share(step: int, num_steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, round(num_steps * _WARM_UP))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def token_counts(features: Features, answers: Sequence[int], vocab_size: int) -> Tensor:
    """[V]: how often each token occurs in `answers`."""
    spans = [features.rows(answer) for answer in answers]
    tokens = torch.cat([features.token_ids[span.start : span.stop] for span in spans])
    return torch.bincount(tokens, minlength=vocab_size)


def _step(
    heads: nn.ModuleList, lm_head: Tensor, batch: Batch, columns: Columns | None, soft_labels: float
) -> list[float]:
    """Adds the gradients of one batch; returns each head's mean loss. Pieces of rows bound the memory of logits."""
    device = lm_head.device
    num_columns = len(lm_head) if columns is None else len(columns.token_ids)
    piece = max(1, _LOGIT_BYTES[device.type] // (4 * num_columns))
    hidden, targets = batch.hidden.to(device), batch.targets
    if columns is not None:
        targets = torch.where(targets >= 0, columns.column_of[targets], -1)
    targets = targets.to(device)
    num_targets = (targets >= 0).sum(0).clamp(min=1)
    sums = torch.zeros(len(heads), device=device)
    shared = _rows(lm_head, columns)
    for start in range(0, len(hidden), piece):
        stop = min(start + piece, len(hidden))
        # The base's own distribution where head i should have it: at row j + 1 + i for row j.
        teacher = None
        if soft_labels:
            teacher = _probabilities(hidden[start + 1 : stop + len(heads)], shared, columns)
        for i, head in enumerate(heads):
            assert isinstance(head, MedusaHead)
            valid = (targets[start:stop, i] >= 0).nonzero().squeeze(1)
            rows = _rows(head.projection, columns) if isinstance(head.projection, nn.Parameter) else shared
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = _logits(head(hidden[start + valid]), rows, columns)
            soft = None if teacher is None else teacher[valid + i]
            loss = head_loss(logits, targets[start + valid, i], soft, soft_labels)
            sums[i] += loss.detach()
            (loss * HEAD_DECAY**i / num_targets[i]).backward()  # type: ignore[no-untyped-call]
    return [float(loss) for loss in (sums / num_targets).tolist()]


def _rows(projection: Tensor, columns: Columns | None) -> Tensor:
    return projection if columns is None else projection[columns.token_ids.to(projection.device)]


def _logits(hidden: Tensor, rows: Tensor, columns: Columns | None) -> Tensor:
    logits = F.linear(hidden.to(rows.dtype), rows)
    return logits if columns is None else logits + columns.log_weights.to(logits.device)


@torch.no_grad()
def _probabilities(hidden: Tensor, rows: Tensor, columns: Columns | None) -> Tensor:
    return _logits(hidden, rows, columns).float().softmax(-1)


class _Checkpoint:
    """The state of training in one file, replaced whole."""

    def __init__(self, path: Path, made_from: str, heads: nn.ModuleList, optimizer: torch.optim.Optimizer) -> None:
        self._path = path
        self._made_from = made_from
        self._heads = heads
        self._optimizer = optimizer

    def load(self) -> int:
        """The number of steps that are done. Raises TrainError."""
        if not self._path.is_file():
            return 0
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # of damage, one class or another; but also want of memory, so that the file stays
            reason = described(error).splitlines()[0]
            raise TrainError(f"{self._path} cannot be read ({reason}); delete it, and training begins anew") from error
        if state["made_from"] != self._made_from:
            return 0
        self._heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self, step: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {"made_from": self._made_from, "step": step}
        state |= {"heads": self._heads.state_dict(), "optimizer": self._optimizer.state_dict()}
        save_whole(self._path, lambda path: torch.save(state, path))
