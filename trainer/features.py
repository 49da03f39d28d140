"""What the heads are trained from: the base's hidden state and token at each position of the answers, kept on disk.

Computed once, batch by batch; a run that was killed goes on at the batch it was in.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from trainer.answers import Answer
from trainer.base import Base
from trainer.errors import TrainError
from trainer.files import fingerprint, read_json, write_json

# Tokens of a batch, padding included: enough to fill the device, little enough for its memory.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True, slots=True)
class Features:
    """Row j of an answer: the state whose LM head gives the answer's token j, so that head i learns token j + 1 + i.

    `hidden`: [R, h] float16, memory-mapped. `token_ids`: [R] int64. Answer a has the rows starts[a]:starts[a + 1].
    """

    hidden: Tensor
    token_ids: Tensor
    starts: list[int]

    def rows(self, answer: int) -> range:
        return range(self.starts[answer], self.starts[answer + 1])


def compute_features(base: Base, answers: Sequence[Answer], work: Path, *, model: str) -> Features:
    """`answers`: the longest first. `model`: what says that a folder's features are of this base. Raises TrainError."""
    work.mkdir(parents=True, exist_ok=True)
    starts = [0]
    for answer in answers:
        starts.append(starts[-1] + len(answer.token_ids))
    size = starts[-1] * base.hidden_size
    made_from = fingerprint(model, [[answer.prompt_token_ids, answer.token_ids] for answer in answers])
    data, state = work / "features.f16", work / "features.json"
    done = read_json(state) or {}
    num_done = int(done.get("num_answers", 0)) if done.get("made_from") == made_from and data.is_file() else 0
    if num_done == 0:
        # First of all: what it says of the old file would be believed of the new one.
        state.unlink(missing_ok=True)
        data.unlink(missing_ok=True)  # maybe of another size
        _reserve(data, 2 * size)
    hidden = torch.from_file(str(data), shared=True, size=size, dtype=torch.float16).view(-1, base.hidden_size)
    device = base.lm_head.device
    total = sum(len(answer) for answer in answers)
    finished = sum(len(answer) for answer in answers[:num_done])
    with tqdm(total=total, initial=finished, desc="features", unit="token", unit_scale=True) as bar:
        for first, batch in _batches(answers, num_done, _BATCH_TOKENS[device.type]):
            states = base.hidden_states(_padded(batch).to(device))
            for row, answer in enumerate(batch):
                from_row = len(answer.prompt_token_ids) - 1
                kept = states[row, from_row : from_row + len(answer.token_ids)].to(torch.float16)
                if not kept.isfinite().all():
                    raise TrainError("the base's hidden states do not fit float16; heads for it cannot be trained here")
                hidden[starts[first + row] : starts[first + row + 1]] = kept.cpu()
            # The kernel keeps what was written to the mapping when only this process dies.
            write_json(state, {"made_from": made_from, "num_answers": first + len(batch)})
            bar.update(sum(len(answer) for answer in batch))
    token_ids = torch.tensor([token for answer in answers for token in answer.token_ids])
    return Features(hidden, token_ids, starts)


def _reserve(path: Path, num_bytes: int) -> None:
    """Writing to a mapping for which the disk has no room would end the process without a word."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, num_bytes))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise TrainError(f"{path} cannot be made, {num_bytes * 1e-9:.2f} GB: {error.strerror}") from error


def _batches(answers: Sequence[Answer], first: int, tokens: int) -> Iterator[tuple[int, Sequence[Answer]]]:
    while first < len(answers):
        # The first is the longest, so it says how wide the batch is.
        batch = answers[first : first + max(1, tokens // len(answers[first]))]
        yield first, batch
        first += len(batch)


def _padded(batch: Sequence[Answer]) -> Tensor:
    padded = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
    for row, answer in enumerate(batch):
        padded[row, : len(answer)] = torch.tensor(answer.prompt_token_ids + answer.token_ids)
    return padded
