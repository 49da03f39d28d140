"""Speculation: what a proposer is. Verification and each proposer are modules of their own.

Must not know of models, slots or collectives.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Drafts(NamedTuple):
    """Draft tokens of S sequences: [S, K] int64, of which the first `num_drafts` [S] int64 of each row count."""

    token_ids: Tensor
    num_drafts: Tensor


class Proposer(Protocol):
    """Guesses what follows a sequence. A wrong guess costs a row of the next step and never changes a token."""

    @property
    def method(self) -> str:
        """The name in flags, logs and metrics."""

    @property
    def num_speculative_tokens(self) -> int:
        """K, the most drafts of one sequence."""

    def propose(self, token_ids: Tensor, num_tokens: Tensor, budget: Tensor) -> Drafts:
        """Drafts for the positions from `num_tokens` on.

        `token_ids` [S, L] int64 holds `num_tokens` [S] committed tokens a row and anything beyond them; `budget` [S]
        bounds the drafts of each row, 0 asks for none.
        """
