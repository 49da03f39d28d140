"""How good the heads are on answers they were not trained on: what a user reads, and what the server starts from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from trainer.features import Features
from trainer.heads import MedusaHead
from trainer.train import Batch

WIDTH = 10
_ROWS = 512


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of head d: `accuracy[d][k]`: its target is among its best k + 1. `acceptance[d][j]`: its candidate of rank j is
    right, given that every head before it has the right token among its best ten, as on a path of a tree.
    `probability[d][j]`: its mean softmax probability over the same rows. `base`: share of answer tokens that are the
    base's own greedy choice; far below 1 says that the answers are not the base's.
    """

    accuracy: list[list[float]]
    acceptance: list[list[float]]
    probability: list[list[float]]
    base: float
    num_tokens: int

    def table(self) -> str:
        ranks = (1, 2, 3, 5, 10)
        lines = [f"{self.num_tokens} held-out tokens; right by top-k   " + "".join(f"{f'k={k}':>8}" for k in ranks)]
        width = len(lines[0]) - 8 * len(ranks)
        lines.append(f"{'base model, next token':<{width}}{self.base:>8.3f}")
        for i, row in enumerate(self.accuracy):
            cells = "".join(f"{row[min(k, len(row)) - 1]:>8.3f}" for k in ranks)
            lines.append(f"{f'head {i}, token t+{2 + i}':<{width}}{cells}")
        return "\n".join(lines)


@torch.inference_mode()
def evaluate(
    heads: nn.ModuleList, lm_head: Tensor, features: Features, answers: Sequence[int], token_ids: Tensor | None
) -> Evaluation:
    """On `answers` (their numbers in `features`). `token_ids`: all that the heads may propose, None: the vocabulary."""
    num_heads = len(heads)
    width = min(WIDTH, len(lm_head) if token_ids is None else len(token_ids))
    hits = torch.zeros(num_heads, width, dtype=torch.float64)
    path_hits, path_probability = torch.zeros_like(hits), torch.zeros_like(hits)
    num_rows = torch.zeros(num_heads, 1, dtype=torch.float64)
    num_path_rows = torch.zeros_like(num_rows)
    num_base = num_tokens = 0
    for answer in tqdm(_pieces(features, answers), desc="evaluation", unit="batch"):
        batch = Batch.of(features, answer, num_heads)
        hidden, targets = batch.hidden.to(lm_head.device), batch.targets.to(lm_head.device)
        spans = [features.rows(number) for number in answer]
        tokens = torch.cat([features.token_ids[span.start : span.stop] for span in spans]).to(lm_head.device)
        num_base += int((F.linear(hidden.to(lm_head.dtype), lm_head).argmax(-1) == tokens).sum())
        num_tokens += len(tokens)
        on_path = torch.ones(len(hidden), dtype=torch.bool, device=lm_head.device)
        for i, head in enumerate(heads):
            assert isinstance(head, MedusaHead)
            candidates, probabilities = _candidates(head, hidden, token_ids, width)
            right = candidates == targets[:, i : i + 1]
            valid = targets[:, i] >= 0
            on_path = on_path & valid
            hits[i] += right[valid].sum(0).double().cpu()
            num_rows[i] += int(valid.sum())
            path_hits[i] += right[on_path].sum(0).double().cpu()
            path_probability[i] += probabilities[on_path].double().sum(0).cpu()
            num_path_rows[i] += int(on_path.sum())
            on_path = on_path & right.any(1)
    return Evaluation(
        accuracy=_rounded((hits / num_rows.clamp(min=1)).cumsum(1)),
        acceptance=_rounded(path_hits / num_path_rows.clamp(min=1)),
        probability=_rounded(path_probability / num_path_rows.clamp(min=1)),
        base=num_base / max(1, num_tokens),
        num_tokens=num_tokens,
    )


def _pieces(features: Features, answers: Sequence[int]) -> list[list[int]]:
    """Groups of answers with about as many rows as logits over the whole vocabulary should have."""
    pieces: list[list[int]] = [[]]
    rows = 0
    for answer in answers:
        if rows >= _ROWS:
            pieces.append([])
            rows = 0
        pieces[-1].append(answer)
        rows += len(features.rows(answer))
    return pieces


def _candidates(head: MedusaHead, hidden: Tensor, token_ids: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """(token ids, probabilities), each [N, width], best first: what the server would be given."""
    rows = head.projection if token_ids is None else head.projection[token_ids]
    logits = F.linear(head(hidden).to(rows.dtype), rows).float()
    best = logits.topk(width)
    candidates = best.indices if token_ids is None else token_ids[best.indices]
    return candidates, (best.values - logits.logsumexp(-1, keepdim=True)).exp()


def _rounded(figures: Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in figures.tolist()]
