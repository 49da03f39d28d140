"""Owns `drafthouse_medusa.json`: what the trainer says of the heads beside it. Optional; other programs ignore it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.checkpoint import CheckpointError

FILE = "drafthouse_medusa.json"


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """By head and rank, on text held out: how often its candidate was right, and the mean probability it gave it.

    `token_ids`, if not empty, are those that heads without projections of their own may guess, in rising order.
    """

    acceptance: list[list[float]]
    probability: list[list[float]]
    token_ids: list[int]


def read_figures(folder: Path, *, vocab_size: int) -> HeadFigures | None:
    """None where the folder has no such file. CheckpointError if it makes no sense."""
    file = folder / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        acceptance, probability = _table(content.get("acceptance", [])), _table(content.get("probability", []))
        token_ids = sorted({int(token_id) for token_id in content.get("token_ids") or []})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; delete it, the heads are served without it") from error
    if [len(row) for row in acceptance] != [len(row) for row in probability]:
        raise CheckpointError(f"{file}: acceptance and probability have different sizes; delete it")
    if token_ids and not 0 <= token_ids[0] <= token_ids[-1] < vocab_size:
        raise CheckpointError(f"{file} names token {token_ids[-1]}, but the model has {vocab_size}; delete it")
    return HeadFigures(acceptance, probability, token_ids)


def _table(rows: Any) -> list[list[float]]:
    table = [[float(value) for value in row] for row in rows]
    if not all(0 <= value <= 1 for row in table for value in row):
        raise ValueError("a figure is no number from 0 to 1")
    return table
