"""Speculation: what proposers give, and the tree that is made of it. Each proposer, the tree and its verification are
modules of their own.

Must not know of models or collectives.
"""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Method(IntEnum):
    """Where a draft came from, as bits: a draft may have been proposed twice. The values are those of the wire."""

    NGRAM = 1
    MEDUSA = 2
    NGRAM_AND_MEDUSA = 3


class Proposal(IntEnum):
    """Who is asked for drafts: nobody, lookup in the text so far, or Medusa heads with lookup beside them if it is
    live. The values are those of the wire."""

    NONE = 0
    LOOKUP = 1
    HEADS = 2


class DraftPrice(NamedTuple):
    """What each of a step's drafts costs from number `first` (0, 1, …) on, in accepted drafts: as likely right as that
    it brings what it costs."""

    first: int
    probability: float


class Continuation(NamedTuple):
    """How S sequences may go on: token_ids [S, K] int64, and the length [S] of the match behind them, 0 if none."""

    token_ids: Tensor
    match_length: Tensor


class Candidates(NamedTuple):
    """The W best tokens of each of H heads, best first: token_ids [S, H, W] int64; probabilities [S, H, W] float32, by
    the head's softmax over its whole vocabulary. Head i guesses i + 1 tokens past the one that the step just yielded.
    """

    token_ids: Tensor
    probabilities: Tensor


class DraftTree(NamedTuple):
    """Drafts of S sequences, int64: of each row of token_ids and parents [S, N] the first num_drafts [S] count.

    Draft i is row i + 1 of the step that checks it; parents are such rows, 0 is the last committed token. A parent
    comes before its children and the more probable draft before the less, so that any first n drafts are a tree.
    """

    token_ids: Tensor
    parents: Tensor
    num_drafts: Tensor

    @staticmethod
    def shapes(num_sequences: int, size: int) -> list[tuple[int, ...]]:
        return [(num_sequences, size)] * 2 + [(num_sequences,)]


class Yielded(NamedTuple):
    """What a step yielded for S sequences, int64: the first num_emitted [S] of token_ids [S, D].

    It checked trees of parents [S, R - 1] with on_path [S, R, R] bool (see verify; None: there were no drafts). Of
    their drafts the first num_checked [S] count, and the first num_accepted [S] behind the root on path [S, D] were
    right.
    """

    token_ids: Tensor
    num_emitted: Tensor
    parents: Tensor
    on_path: Tensor | None
    path: Tensor
    num_accepted: Tensor
    num_checked: Tensor
