"""What heads are found to be worth, against figures worked out by hand."""

import math

import torch
from torch import Tensor, nn

from trainer.evaluate import Evaluation, evaluate
from trainer.features import Features
from trainer.heads import MedusaHead

VOCAB = 30


def _head(ranked: dict[int, list[int]]) -> MedusaHead:
    """For states that say their row's number: the tokens in `ranked` of it come first, in that order."""
    projection = torch.zeros(VOCAB, VOCAB)
    for row, tokens in ranked.items():
        for rank, token in enumerate(tokens):
            projection[token, row] = 5.0 - rank / 2
    head = MedusaHead(projection, num_layers=0, own_projection=True)
    return head.requires_grad_(False)


def _features(answers: list[list[int]]) -> Features:
    token_ids = torch.tensor([token for answer in answers for token in answer])
    starts = [0]
    for answer in answers:
        starts.append(starts[-1] + len(answer))
    return Features(torch.eye(VOCAB)[: len(token_ids)].half(), token_ids, starts)


# Rows 0 to 4 and 5 to 7. Head 0 is to say the token one row further on, head 1 two rows.
ANSWERS = [[10, 11, 12, 13, 14], [20, 21, 22]]
MISSES = list(range(VOCAB - 10, VOCAB))
FIRST = {0: [11], 1: [3, 12], 2: MISSES, 3: [14], 5: [3, 4, 21], 6: [22]}
SECOND = {0: [12], 1: [3, 13], 2: [14], 5: [22]}


def _evaluated(second: dict[int, list[int]], token_ids: Tensor | None = None) -> Evaluation:
    heads = nn.ModuleList([_head(FIRST), _head(second)])
    return evaluate(heads, torch.eye(VOCAB), _features(ANSWERS), [0, 1], token_ids)


def test_a_head_counts_on_the_path_where_every_head_before_it_has_the_right_token() -> None:
    found = _evaluated(SECOND)
    # Of its six rows the first head has three right at once, one second, one third, and one not at all.
    assert found.accuracy[0][:4] == [0.5, 0.66667, 0.83333, 0.83333]
    assert found.acceptance[0][:4] == [0.5, 0.16667, 0.16667, 0.0]
    # The second head has four rows: three at once, one second. At row 2, where it is right, the first is not.
    assert found.accuracy[1][:3] == [0.75, 1.0, 1.0]
    assert found.acceptance[1][:3] == [0.66667, 0.33333, 0.0]


def test_what_a_head_says_where_the_path_has_ended_changes_no_acceptance() -> None:
    wrong = _evaluated({**SECOND, 2: MISSES})
    assert wrong.accuracy[1][:2] == [0.5, 0.75]
    assert wrong.acceptance == _evaluated(SECOND).acceptance
    assert wrong.probability == _evaluated(SECOND).probability


def test_a_candidates_probability_is_its_softmax_over_all_that_may_be_proposed() -> None:
    tokens = torch.tensor([3, 4, 11, 12, 13, 14, *MISSES])
    for token_ids, others in ((None, VOCAB - 1), (tokens, len(tokens) - 1)):
        at_once = math.e**5 / (math.e**5 + others)
        second = math.e**5 / (math.e**5 + math.e**4.5 + others - 1)
        found = _evaluated(SECOND, token_ids)
        assert abs(found.probability[1][0] - (2 * at_once + second) / 3) < 1e-4


def test_the_base_is_right_where_its_own_choice_is_the_answers_token() -> None:
    heads = nn.ModuleList([_head(FIRST)])
    lm_head = torch.zeros(VOCAB, VOCAB)
    for row, token in enumerate([10, 11, 12, 3, 3, 20, 21, 3]):
        lm_head[token, row] = 1.0
    found = evaluate(heads, lm_head, _features(ANSWERS), [0, 1], None)
    assert (found.base, found.num_tokens) == (5 / 8, 8)
