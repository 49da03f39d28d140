import errno
import os
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from trainer.answers import Answer, usable
from trainer.base import Base, load_base
from trainer.errors import TrainError
from trainer.features import compute_features
from trainer.train import Batch

CPU = torch.device("cpu")


def _answers(base: Base, count: int = 9) -> list[Answer]:
    """Greedy ones, of different lengths, by recomputing everything for each token."""
    answers = []
    for number in range(count):
        tokens = [3 + number, 40, 50 + number]
        for _ in range(4 + number):
            last = base.hidden_states(torch.tensor([tokens]))[0, -1]
            tokens.append(int((base.lm_head @ last).argmax()))
        answers.append(Answer(tuple(tokens[:3]), tuple(tokens[3:])))
    return usable(answers, vocab_size=base.vocab_size, max_positions=None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(make_checkpoint(tmp_path_factory.mktemp("base") / "model"), CPU)


def test_a_base_is_as_long_as_its_service(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 2048}
    assert load_base(make_checkpoint(tmp_path, rope_parameters=rope), CPU).max_positions == 4 * 2048


def test_the_lm_head_gives_each_row_its_own_token(base: Base, tmp_path: Path) -> None:
    answers = _answers(base)
    features = compute_features(base, answers, tmp_path, model="tiny")
    assert len(features.hidden) == sum(len(answer.token_ids) for answer in answers)
    assert torch.equal((features.hidden.float() @ base.lm_head.T).argmax(-1), features.token_ids)
    for number, answer in enumerate(answers):
        rows = features.rows(number)
        assert features.token_ids[rows.start : rows.stop].tolist() == list(answer.token_ids)


def test_head_i_learns_the_token_two_and_i_places_after_its_row(base: Base, tmp_path: Path) -> None:
    answers = _answers(base)
    batch = Batch.of(compute_features(base, answers, tmp_path, model="tiny"), [2, 0], num_heads=3)
    row = 0
    for answer in (answers[2], answers[0]):
        whole = answer.prompt_token_ids + answer.token_ids
        for t in range(len(answer.prompt_token_ids) - 1, len(whole) - 1):
            state = base.hidden_states(torch.tensor([whole]))[0, t]
            torch.testing.assert_close(batch.hidden[row], state, atol=2e-2, rtol=2e-3)
            expected = [whole[t + 2 + i] if t + 2 + i < len(whole) else -1 for i in range(3)]
            assert batch.targets[row].tolist() == expected
            row += 1
    assert row == len(batch.hidden)


def test_features_go_on_at_the_batch_a_kill_left_them_in(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = _answers(base)
    whole = compute_features(base, answers, tmp_path / "whole", model="tiny").hidden
    monkeypatch.setattr("trainer.features._BATCH_TOKENS", {"cpu": 24})
    calls = 0

    class Dying(Exception):
        pass

    def counted(token_ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Dying
        return base.hidden_states(token_ids)

    dying = _Counted(base, counted)
    with pytest.raises(Dying):
        compute_features(dying, answers, tmp_path / "cut", model="tiny")
    again = compute_features(dying, answers, tmp_path / "cut", model="tiny").hidden
    torch.testing.assert_close(again, whole, atol=1e-2, rtol=1e-2)
    at_the_end = calls
    assert at_the_end > 4
    compute_features(dying, answers, tmp_path / "cut", model="tiny")
    assert calls == at_the_end, "finished features were computed again"
    compute_features(dying, answers[1:], tmp_path / "cut", model="tiny")
    assert calls > at_the_end, "features of other answers were taken"


def test_a_disk_without_room_is_said_before_anything_is_computed(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.features.os.posix_fallocate", is_full)
    with pytest.raises(TrainError, match=r"features\.f16 cannot be made, .* GB: No space left"):
        compute_features(base, _answers(base), tmp_path, model="tiny")
    assert not list(tmp_path.iterdir())


def test_a_kill_before_the_first_batch_leaves_nothing_that_looks_computed(base: Base, tmp_path: Path) -> None:
    class Dying(Exception):
        pass

    def die(token_ids: torch.Tensor) -> torch.Tensor:
        raise Dying

    answers = _answers(base)
    expected = compute_features(base, answers, tmp_path, model="one").hidden.clone()
    with pytest.raises(Dying):
        compute_features(_Counted(base, die), answers, tmp_path, model="another")
    assert torch.equal(compute_features(base, answers, tmp_path, model="one").hidden, expected)


class _Counted(Base):
    def __init__(self, base: Base, hidden_states: object) -> None:
        super().__init__(base.body, base.lm_head, base.max_positions)
        object.__setattr__(self, "_hidden_states", hidden_states)

    def hidden_states(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self._hidden_states(token_ids)  # type: ignore[attr-defined,no-any-return]
