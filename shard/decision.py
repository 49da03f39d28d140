"""What rank 0 decides in a step, as one tensor for one broadcast.

Every rank applies exactly this; no rank trusts its own arithmetic for a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Decision:
    """All int64: token_ids [S, R], of which the first num_emitted [S] count; drafts [S, K], first num_drafts [S]."""

    token_ids: Tensor
    draft_token_ids: Tensor
    num_emitted: Tensor
    num_accepted: Tensor
    num_checked: Tensor
    num_drafts: Tensor
    finished: Tensor

    def pack(self) -> Tensor:
        counts = [self.num_emitted, self.num_accepted, self.num_checked, self.num_drafts, self.finished.long()]
        return torch.cat([self.token_ids, self.draft_token_ids, torch.stack(counts, 1)], 1)

    @staticmethod
    def width(num_rows: int, num_speculative_tokens: int) -> int:
        return num_rows + num_speculative_tokens + 5

    @classmethod
    def unpack(cls, packed: Tensor, num_rows: int) -> "Decision":
        """`packed` is [S, R + K + 5]."""
        emitted, accepted, checked, drafts, finished = packed[:, -5:].unbind(1)
        return cls(
            token_ids=packed[:, :num_rows],
            draft_token_ids=packed[:, num_rows:-5],
            num_emitted=emitted,
            num_accepted=accepted,
            num_checked=checked,
            num_drafts=drafts,
            finished=finished.bool(),
        )
