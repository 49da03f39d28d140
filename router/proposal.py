"""Who is asked for drafts. Pure data, known to plans, sequences and the budget."""

from enum import Enum


class Proposal(Enum):
    """Nobody, lookup in the text so far, or Medusa heads with lookup beside them."""

    NONE = "none"
    LOOKUP = "lookup"
    HEADS = "heads"
