import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.gumbel import gumbel
from shard.speculation.verify import verify


def _reference(
    target: list[int], drafts: list[int], num_drafts: int, room: int, stops: set[int]
) -> tuple[int, int, bool]:
    if num_drafts < 0:
        return 0, 0, False
    emitted: list[int] = []
    accepted = 0
    while len(emitted) < room:
        row = len(emitted)
        emitted.append(target[row])
        is_right = row < num_drafts and drafts[row] == target[row]
        accepted += is_right
        if emitted[-1] in stops or not is_right:
            break
    return len(emitted), accepted, len(emitted) == room or emitted[-1] in stops


@st.composite
def _steps(draw: st.DrawFn) -> tuple[list[list[int]], ...]:
    num_rows = draw(st.integers(1, 5))
    token = st.integers(0, 3)

    def row() -> tuple[list[int], ...]:
        target = draw(st.lists(token, min_size=num_rows, max_size=num_rows))
        # Right up to some draft, then anything: otherwise long accepted chains are rare.
        right = draw(st.integers(0, num_rows - 1))
        rest = draw(st.lists(token, min_size=num_rows - 1 - right, max_size=num_rows - 1 - right))
        num_tokens = draw(st.integers(1, 9))
        room = draw(st.integers(1, 7))
        stops = draw(st.lists(token, max_size=2))
        numbers = [draw(st.integers(-1, num_rows - 1)), num_tokens, num_tokens + room]
        return target, target[:right] + rest, numbers, stops + [-1] * (2 - len(stops))

    rows = [row() for _ in range(draw(st.integers(1, 4)))]
    return tuple([r[i] for r in rows] for i in range(4))


@given(_steps())
def test_verdicts_equal_a_plain_loop_over_tokens(step: tuple[list[list[int]], ...]) -> None:
    target, drafts, numbers, stops = step
    columns = torch.tensor(numbers).unbind(1)
    verdict = verify(
        torch.tensor(target),
        torch.tensor(drafts).reshape(len(target), -1),
        num_drafts=columns[0],
        num_tokens=columns[1],
        max_num_tokens=columns[2],
        stop_token_ids=torch.tensor(stops),
    )
    expected = [
        _reference(t, d, n[0], n[2] - n[1], set(s) - {-1})
        for t, d, n, s in zip(target, drafts, numbers, stops, strict=True)
    ]
    assert list(zip(*(x.tolist() for x in verdict), strict=True)) == expected


def test_a_sequence_without_room_emits_nothing_and_is_finished() -> None:
    verdict = verify(
        torch.tensor([[4, 5]]),
        torch.tensor([[4]]),
        num_drafts=torch.tensor([1]),
        num_tokens=torch.tensor([9]),
        max_num_tokens=torch.tensor([9]),
        stop_token_ids=torch.empty(1, 0, dtype=torch.int64),
    )
    assert [x.tolist() for x in verdict] == [[0], [0], [True]]


VOCAB, LENGTH, STOP = 5, 60, 4


def _true_tokens(contexts: torch.Tensor, seed: int, positions: torch.Tensor) -> torch.Tensor:
    """A model that looks at the last two tokens [n, 2], sampled at a temperature of 1; stop tokens are rare."""
    logits = torch.randn(VOCAB, VOCAB, VOCAB, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    logits[..., STOP] -= 3
    scores = logits[contexts[:, 0], contexts[:, 1]]
    noise = gumbel(torch.tensor(seed), positions[:, None], torch.arange(VOCAB), torch.float64)
    return (scores + noise).argmax(-1)


def _decode(seed: int, num_drafts: int, max_num_tokens: int, draft_generator: torch.Generator) -> tuple[list[int], int]:
    """Tokens and steps of a decode with random drafts."""
    tokens = [0, 1]
    for step in range(1, max_num_tokens):
        drafts = torch.randint(0, VOCAB - 1, (num_drafts,), generator=draft_generator)
        chain = torch.cat([torch.tensor(tokens[-2:]), drafts])
        positions = torch.arange(len(tokens), len(tokens) + num_drafts + 1)
        target = _true_tokens(chain.unfold(0, 2, 1), seed, positions)[None]
        verdict = verify(
            target,
            drafts[None],
            num_drafts=torch.tensor([num_drafts]),
            num_tokens=torch.tensor([len(tokens)]),
            max_num_tokens=torch.tensor([max_num_tokens]),
            stop_token_ids=torch.tensor([[STOP, -1]]),
        )
        tokens += target[0, : int(verdict.num_emitted)].tolist()
        if verdict.finished:
            return tokens, step
    raise AssertionError("a decode without progress")


def test_a_sampled_decode_gives_the_same_tokens_with_any_drafts() -> None:
    drafts = torch.Generator().manual_seed(1)
    steps_saved, stopped, limited = 0, 0, 0
    for seed in range(25):
        plain, plain_steps = _decode(seed, 0, LENGTH, drafts)
        stopped += plain[-1] == STOP
        limited += len(plain) == LENGTH
        for num_drafts in (1, 2, 4):
            tokens, steps = _decode(seed, num_drafts, LENGTH, drafts)
            assert tokens == plain
            steps_saved += plain_steps - steps
    assert min(steps_saved, stopped, limited) > 0
