"""Medusa heads that know what a model is going to say: as good as heads can be, or as good as a test wants them.

A tiny model's continuations are recorded with transformers in float64, and heads are solved for the hidden states met
on the way. Nothing is trained: hidden states of fewer positions than they are wide are linearly independent, so a
linear map gives each of them any value. Elsewhere such heads talk nonsense, and sure of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.medusa_checkpoints import HeadWeights

# How far above all others the logit of an oracle's token is at least, in its own units.
MIN_MARGIN = 1.0
# Logits of the tokens that a head puts first, best first; all others are at 0.
_RANKED_LOGITS = (7.0, 6.2, 5.6, 5.0)
_SURE_LOGIT = 14.0
# Rank of a right token that is not among the best.
NOT_RANKED = len(_RANKED_LOGITS)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the tokens that the model puts after it."""

    prompt: list[int]
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What heads are to know: hidden [n, h] float64, as the LM head gets them; targets [n, K] int64, the token of head
    i; lm_head [V, h]."""

    hidden: Tensor
    targets: Tensor
    lm_head: Tensor

    def first(self, num_positions: int) -> "Lesson":
        return Lesson(self.hidden[:num_positions], self.targets[:num_positions], self.lm_head)


class RecordedModel:
    """The reference model in float64, for saying and for hearing."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForCausalLM

        # the only way of running experts that knows float64
        self._model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float64, experts_implementation="eager"
        ).eval()
        self._lm_head = self._model.get_output_embeddings().weight.detach()

    @property
    def vocab_size(self) -> int:
        return self._lm_head.shape[0]

    @torch.inference_mode()
    def hidden(self, token_ids: list[int]) -> Tensor:
        """[h] of each token: final and normalised, [n, h]."""
        hidden: Tensor = self._model.base_model(torch.tensor([token_ids]), use_cache=False).last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def say(self, prompt: list[int], *, new: int) -> Text:
        """Greedily; end tokens end nothing. Fails where a decision is so near a tie that rounding may make it."""
        token_ids = list(prompt)
        for _ in range(new):
            best = (self.hidden(token_ids)[-1] @ self._lm_head.T).topk(2)
            assert float(best.values[0] - best.values[1]) > 1e-3, "two tokens are nearly tied; take another prompt"
            token_ids.append(int(best.indices[0]))
        return Text(prompt, token_ids[len(prompt) :])

    def learn(self, texts: list[Text], *, num_heads: int) -> Lesson:
        """All positions of `texts`, from the prompt's last on, after which every head's token is known."""
        hidden, targets = [], []
        for text in texts:
            num_positions = len(text.token_ids) - num_heads
            start = len(text.prompt) - 1
            hidden.append(self.hidden(text.prompt + text.token_ids)[start : start + num_positions])
            # After position s comes token s by the LM head, so head i guesses token s + 1 + i.
            windows = torch.tensor(text.token_ids).unfold(0, num_heads + 1, 1)
            targets.append(windows[:num_positions, 1:])
        # out of inference mode: heads are written to files
        return Lesson(torch.cat(hidden).clone(), torch.cat(targets), self._lm_head.clone())


def oracle_heads(lesson: Lesson, *, tied: bool = False, seed: int = 0) -> list[HeadWeights]:
    """Heads of one block that are right at every position of the lesson; `tied` ones use the model's LM head (v2).

    Proved here: a margin over every other token, and that they need their bias and their place.
    """
    ranks = torch.zeros_like(lesson.targets)
    make = _tied_head if tied else _own_head
    generator = torch.Generator().manual_seed(seed)
    heads = [make(lesson, head, ranks[:, head], generator) for head in range(lesson.targets.shape[1])]
    for head in range(len(heads)):
        best = head_logits(heads[head], lesson).topk(2)
        assert torch.equal(best.indices[:, 0], lesson.targets[:, head])
        assert float((best.values[:, 0] - best.values[:, 1]).min()) > MIN_MARGIN
    assert accuracy(without_bias(heads), lesson) < 0.35
    assert accuracy(heads[1:], lesson) < 0.25
    return heads


def ranked_heads(lesson: Lesson, ranks: Tensor, *, seed: int = 0) -> list[HeadWeights]:
    """Heads of v1 that put the right token of position s and head i in place `ranks[s, i]` [n, K], 0 is the best, and
    wrong ones before it; NOT_RANKED: behind them all."""
    generator = torch.Generator().manual_seed(seed)
    heads = [_own_head(lesson, head, ranks[:, head], generator) for head in range(lesson.targets.shape[1])]
    for index, head in enumerate(heads):
        order = head_logits(head, lesson).argsort(dim=1, descending=True)
        found = (order == lesson.targets[:, index, None]).long().argmax(1)
        assert torch.equal(found.clamp_max(NOT_RANKED), ranks[:, index])
    return heads


def partly_right_ranks(lesson: Lesson, *, seed: int = 0) -> Tensor:
    """[n, K]: two of five are the best, two are second to fourth, one is nowhere."""
    choices = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, NOT_RANKED, NOT_RANKED])
    drawn = torch.randint(len(choices), lesson.targets.shape, generator=torch.Generator().manual_seed(seed))
    return choices[drawn]


def without_bias(heads: list[HeadWeights]) -> list[HeadWeights]:
    """As a loader that drops it would see them."""
    return [
        HeadWeights([(weight, torch.zeros_like(bias)) for weight, bias in head.blocks], head.projection)
        for head in heads
    ]


def accuracy(heads: list[HeadWeights], lesson: Lesson) -> float:
    """Share of the positions and heads at which the best token is the right one."""
    best = torch.stack([head_logits(head, lesson).argmax(1) for head in heads], 1)
    return float((best == lesson.targets[:, : len(heads)]).double().mean())


def head_logits(head: HeadWeights, lesson: Lesson) -> Tensor:
    """[n, V], in float64, from the written weights."""
    x = lesson.hidden
    for weight, bias in head.blocks:
        x = x + F.silu(F.linear(x, weight.double(), bias.double()))
    return F.linear(x, lesson.lm_head if head.projection is None else head.projection.double())


def _own_head(lesson: Lesson, head: int, ranks: Tensor, generator: torch.Generator) -> HeadWeights:
    """A random block with a bias that matters; the projection is solved for the logits wanted."""
    num_positions, hidden = lesson.hidden.shape
    assert num_positions <= hidden, "more positions than hidden states are wide cannot all be told apart"
    # a bias so large that it decides which features are linear and which are off
    weight = torch.randn(hidden, hidden, generator=generator)
    bias = torch.randn(hidden, generator=generator) * 24
    features = lesson.hidden + F.silu(F.linear(lesson.hidden, weight.double(), bias.double()))
    wanted = _wanted_logits(lesson.targets[:, head], ranks, lesson.lm_head.shape[0], generator)
    return HeadWeights([(weight, bias)], (torch.linalg.pinv(features) @ wanted).T.float().contiguous())


def _wanted_logits(targets: Tensor, ranks: Tensor, vocab: int, generator: torch.Generator) -> Tensor:
    """[n, V]: zeros but for the tokens put first."""
    wanted = torch.zeros(len(targets), vocab, dtype=torch.float64)
    for row, (target, rank) in enumerate(zip(targets.tolist(), ranks.tolist(), strict=True)):
        if rank == 0:
            wanted[row, target] = _SURE_LOGIT
            continue
        # Wrong ones, and the right one among them; if it is nowhere, below all that are not even named.
        others = [token for token in torch.randperm(vocab, generator=generator).tolist() if token != target]
        first = [*others[:rank], target, *others[rank:]]
        wanted[row, first[:NOT_RANKED]] = torch.tensor(_RANKED_LOGITS, dtype=torch.float64)
        if rank == NOT_RANKED:
            wanted[row, target] = -1.0
    return wanted


def _tied_head(lesson: Lesson, head: int, ranks: Tensor, generator: torch.Generator) -> HeadWeights:
    """The block is solved so that what it adds makes the LM head say the right token.

    SiLU gives (nearly) nothing below zero, so of the token's own row only the positive part can be added. It is far
    more like its own row than like any other.
    """
    assert not ranks.any(), "heads that share the LM head are right or nothing"
    num_positions, hidden = lesson.hidden.shape
    assert num_positions <= hidden, "more positions than hidden states are wide cannot all be told apart"
    rows = lesson.lm_head[lesson.targets[:, head]]
    wanted = rows * (20 / rows.std())
    bias = (torch.randn(hidden, generator=generator).double() * 8 * wanted.std()).float()
    weight = torch.linalg.pinv(lesson.hidden) @ (wanted - bias.double())
    return HeadWeights([(weight.T.float().contiguous(), bias)], None)
