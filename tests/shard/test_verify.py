import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.cpu.decide import decision_kernels
from shard.gumbel import gumbel
from shard.speculation.verify import Verdict, ancestors, verify
from shard.states import SequenceStates


def _verify(
    compiled: bool,
    target: torch.Tensor,
    drafts: torch.Tensor,
    parents: torch.Tensor,
    on_path: torch.Tensor | None,
    *,
    num_drafts: torch.Tensor,
    num_tokens: torch.Tensor,
    max_num_tokens: torch.Tensor,
    stop_token_ids: torch.Tensor,
) -> Verdict:
    """Compiled: of sequences whose slots, and whose rows, are in the opposite order."""
    if not compiled:
        bounds = {"num_tokens": num_tokens, "max_num_tokens": max_num_tokens, "stop_token_ids": stop_token_ids}
        return verify(target, drafts, parents, on_path, num_drafts=num_drafts, **bounds)
    kernels, (n, num_rows) = decision_kernels(), target.shape
    assert kernels is not None
    states = SequenceStates(
        num_slots=n, max_total_tokens=LENGTH, tree_size=1, block_size=16, device=torch.device("cpu")
    )
    slots = torch.arange(n).flip(0)
    states.num_tokens[slots], states.max_num_tokens[slots] = num_tokens, max_num_tokens
    token_ids, path, emitted, accepted, finished = kernels.decide(
        states.kept,
        stop_token_ids.flip(0),
        slots=slots,
        token_ids=target.flatten().flip(0),
        cells=torch.arange(n * num_rows).flip(0).view(n, num_rows),
        drafts=drafts,
        parents=parents,
        num_drafts=num_drafts,
        depth=num_rows,
    )
    assert torch.equal(states.num_tokens[slots], num_tokens + emitted)
    assert torch.equal(states.finished[slots], finished.bool())
    for s in range(n):
        appended = states.token_ids[slots[s], num_tokens[s] :][: emitted[s]]
        assert torch.equal(appended, token_ids[s, : emitted[s]])
    return Verdict(token_ids, path, emitted, accepted, finished.bool())


def _reference(
    target: list[int], drafts: list[int], parents: list[int], num_drafts: int, room: int, stops: set[int]
) -> tuple[list[int], int, bool]:
    """Walks down from the root: tokens, how many were drafted, whether the sequence ends."""
    emitted: list[int] = []
    if num_drafts < 0:
        return emitted, 0, False
    rows, accepted = [0], 0
    while len(emitted) < room:
        emitted.append(target[rows[0]])
        # Equal siblings stand for the same text, so all of them are followed.
        rows = [i + 1 for i in range(num_drafts) if parents[i] in rows and drafts[i] == emitted[-1]]
        accepted += bool(rows)
        if emitted[-1] in stops or not rows:
            break
    return emitted, accepted, len(emitted) == room or emitted[-1] in stops


@st.composite
def _steps(draw: st.DrawFn) -> list[dict[str, list[int]]]:
    """Trees whose targets are a function of the path, as a model's are."""
    num_drafts = draw(st.integers(0, 9))
    token = st.integers(0, 3)

    def row() -> dict[str, list[int]]:
        model = draw(st.integers(0, 10_000))
        parents, drafts, paths = [], [], [()]
        for i in range(num_drafts):
            parents.append(draw(st.integers(0, i)))
            above = paths[parents[-1]]
            # Right at least every other time: otherwise long accepted paths are rare.
            right = hash((model, above)) % 4
            drafts.append(right if draw(st.booleans()) else draw(token))
            paths.append((*above, drafts[-1]))
        num_tokens = draw(st.integers(1, 9))
        stops = draw(st.lists(token, max_size=2))
        return {
            "target": [hash((model, path)) % 4 for path in paths],
            "drafts": drafts,
            "parents": parents,
            "numbers": [draw(st.integers(-1, num_drafts)), num_tokens, num_tokens + draw(st.integers(1, 7))],
            "stops": stops + [-1] * (2 - len(stops)),
        }

    return [row() for _ in range(draw(st.integers(1, 4)))]


@pytest.mark.parametrize("compiled", [True, False])
@given(step=_steps())
def test_verdicts_equal_a_plain_walk_down_the_tree(compiled: bool, step: list[dict[str, list[int]]]) -> None:
    def tensor(name: str) -> torch.Tensor:
        return torch.tensor([row[name] for row in step], dtype=torch.int64)

    num_drafts, num_tokens, max_num_tokens = tensor("numbers").unbind(1)
    parents = tensor("parents")
    verdict = _verify(
        compiled,
        tensor("target"),
        tensor("drafts"),
        parents,
        ancestors(parents) if parents.shape[1] else None,
        num_drafts=num_drafts,
        num_tokens=num_tokens,
        max_num_tokens=max_num_tokens,
        stop_token_ids=tensor("stops"),
    )
    for s, row in enumerate(step):
        count, before, limit = row["numbers"]
        expected = _reference(
            row["target"], row["drafts"], row["parents"], count, limit - before, set(row["stops"]) - {-1}
        )
        emitted = int(verdict.num_emitted[s])
        tokens = verdict.token_ids[s, :emitted].tolist()
        assert (tokens, int(verdict.num_accepted[s]), bool(verdict.finished[s])) == expected
        # The path: rows that follow one another, each with the token that the one before it calls for.
        path = verdict.path[s, :emitted].tolist()
        assert [row["target"][r] for r in path] == tokens
        assert path[:1] == [0][:emitted]
        assert [row["drafts"][r - 1] for r in path[1:]] == tokens[:-1]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_sequence_without_room_emits_nothing_and_is_finished(compiled: bool) -> None:
    parents = torch.tensor([[0]])
    verdict = _verify(
        compiled,
        torch.tensor([[4, 5]]),
        torch.tensor([[4]]),
        parents,
        ancestors(parents),
        num_drafts=torch.tensor([1]),
        num_tokens=torch.tensor([9]),
        max_num_tokens=torch.tensor([9]),
        stop_token_ids=torch.empty(1, 0, dtype=torch.int64),
    )
    assert (verdict.num_emitted.tolist(), verdict.num_accepted.tolist(), verdict.finished.tolist()) == (
        [0],
        [0],
        [True],
    )


VOCAB, LENGTH, STOP = 5, 60, 4


def _true_tokens(contexts: torch.Tensor, seed: int, positions: torch.Tensor) -> torch.Tensor:
    """A model that looks at the last two tokens [n, 2], sampled at a temperature of 1; stop tokens are rare."""
    logits = torch.randn(VOCAB, VOCAB, VOCAB, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    logits[..., STOP] -= 3
    scores = logits[contexts[:, 0], contexts[:, 1]]
    noise = gumbel(torch.tensor(seed), positions[:, None], torch.arange(VOCAB), torch.float64)
    return (scores + noise).argmax(-1)


def _decode(seed: int, num_drafts: int, max_num_tokens: int, draft_generator: torch.Generator) -> tuple[list[int], int]:
    """Tokens and steps of a decode with random trees of drafts."""
    tokens = [0, 1]
    for step in range(1, max_num_tokens):
        drafts = torch.randint(0, VOCAB - 1, (num_drafts,), generator=draft_generator)
        parents = torch.tensor(
            [int(torch.randint(0, i + 1, (), generator=draft_generator)) for i in range(num_drafts)], dtype=torch.int64
        )
        contexts, depths = [tokens[-2:]], [0]
        for parent, draft in zip(parents.tolist(), drafts.tolist(), strict=True):
            contexts.append([contexts[parent][1], draft])
            depths.append(depths[parent] + 1)
        target = _true_tokens(torch.tensor(contexts), seed, len(tokens) + torch.tensor(depths))[None]
        verdict = verify(
            target,
            drafts[None],
            parents[None],
            ancestors(parents[None]) if num_drafts else None,
            num_drafts=torch.tensor([num_drafts]),
            num_tokens=torch.tensor([len(tokens)]),
            max_num_tokens=torch.tensor([max_num_tokens]),
            stop_token_ids=torch.tensor([[STOP, -1]]),
        )
        tokens += verdict.token_ids[0, : int(verdict.num_emitted)].tolist()
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
        for num_drafts in (1, 2, 8):
            tokens, steps = _decode(seed, num_drafts, LENGTH, drafts)
            assert tokens == plain
            steps_saved += plain_steps - steps
    assert min(steps_saved, stopped, limited) > 0
