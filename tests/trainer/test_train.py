"""Heads on a toy where the next tokens follow from the state: what is learned, and that a kill changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import train as train_module
from trainer.errors import TrainError
from trainer.evaluate import evaluate
from trainer.features import Features
from trainer.heads import head_tensors, make_heads
from trainer.loss import choose_columns, head_loss
from trainer.train import TrainSettings, learning_rate_share, plan_batches, train

VOCAB, HIDDEN, LENGTH = 96, 64, 12
SETTINGS = TrainSettings(epochs=15, learning_rate=1e-2, batch_tokens=128, soft_labels=0.0, seed=0)


def _toy(num_answers: int = 96) -> tuple[Tensor, Features]:
    """(LM head, features): token n is followed by (5 n + 7) mod V, and the state tells the next token."""
    generator = torch.Generator().manual_seed(0)
    lm_head = torch.randn(VOCAB, HIDDEN, generator=generator)
    first = torch.randint(VOCAB, (num_answers,), generator=generator)
    tokens = [first]
    for _ in range(LENGTH - 1):
        tokens.append((5 * tokens[-1] + 7) % VOCAB)
    token_ids = torch.stack(tokens, 1).flatten()
    hidden = 0.5 * lm_head[token_ids] + 0.05 * torch.randn(len(token_ids), HIDDEN, generator=generator)
    return lm_head, Features(hidden.half(), token_ids, [LENGTH * i for i in range(num_answers + 1)])


def _heads(lm_head: Tensor, version: str = "v2", num_heads: int = 2) -> nn.ModuleList:
    return make_heads(lm_head, version=version, num_heads=num_heads, num_layers=1)


@pytest.mark.parametrize(("version", "soft_labels"), [("v2", 0.0), ("v2", 0.5), ("v1", 0.0)])
def test_heads_learn_what_follows(tmp_path: Path, version: str, soft_labels: float) -> None:
    lm_head, features = _toy()
    heads = _heads(lm_head, version)
    held_out = list(range(80, 96))
    before = evaluate(heads, lm_head, features, held_out, None)
    settings = TrainSettings(**{**_fields(SETTINGS), "soft_labels": soft_labels})
    train(heads, lm_head, features, range(80), settings, tmp_path, made_from="toy")
    after = evaluate(heads, lm_head, features, held_out, None)
    assert after.base == 1.0
    for head in range(2):
        assert before.accuracy[head][0] < 0.1
        assert after.accuracy[head][0] > 0.8
        assert after.accuracy[head] == sorted(after.accuracy[head])
        assert after.acceptance[head][0] > 0.8
        assert after.probability[head] == sorted(after.probability[head], reverse=True)


def test_a_run_that_was_killed_ends_with_the_same_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_head, features = _toy(32)
    settings = TrainSettings(epochs=3, learning_rate=1e-2, batch_tokens=64, soft_labels=0.25, seed=3)
    monkeypatch.setattr(train_module, "CHECKPOINT_INTERVAL_S", 0.0)
    # Less than the vocabulary, so that columns are drawn.
    monkeypatch.setattr(train_module, "_NUM_COMMON", 16)
    monkeypatch.setattr(train_module, "_NUM_SAMPLED", 16)
    whole = _heads(lm_head)
    train(whole, lm_head, features, range(32), settings, tmp_path / "whole", made_from="toy")

    step, steps = train_module._step, 0

    def dying(*arguments: object) -> list[float]:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_module, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(_heads(lm_head), lm_head, features, range(32), settings, tmp_path / "cut", made_from="toy")
    resumed = _heads(lm_head)
    train(resumed, lm_head, features, range(32), settings, tmp_path / "cut", made_from="toy")
    num_batches = len(plan_batches([LENGTH] * 32, settings))
    assert steps == num_batches + 1
    for name, tensor in head_tensors(whole).items():
        assert torch.equal(tensor, head_tensors(resumed)[name]), name
    train(_heads(lm_head), lm_head, features, range(32), settings, tmp_path / "cut", made_from="other answers")
    assert steps == 2 * num_batches + 1, "a checkpoint of other answers was taken"


@pytest.mark.parametrize("length", [0, 1000])
def test_a_checkpoint_that_is_damaged_is_named_and_stays(tmp_path: Path, length: int) -> None:
    lm_head, features = _toy(4)
    train(_heads(lm_head), lm_head, features, range(4), SETTINGS, tmp_path, made_from="toy")
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TrainError, match=r"checkpoint\.pt cannot be read .*; delete it, and training begins anew"):
        train(_heads(lm_head), lm_head, features, range(4), SETTINGS, tmp_path, made_from="toy")
    assert path.stat().st_size == length


def _fields(settings: TrainSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__slots__}


def test_the_sampled_loss_is_the_whole_loss_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 500, generator=generator, dtype=torch.float64)
    targets = torch.randint(500, (40,), generator=generator)
    whole = float(F.cross_entropy(logits, targets, reduction="sum"))
    draws = []
    for _ in range(200):
        columns = choose_columns(targets, torch.arange(50), vocab_size=500, num_sampled=100, generator=generator)
        chosen = logits[:, columns.token_ids] + columns.log_weights
        draws.append(float(head_loss(chosen, columns.column_of[targets], None, 0.0)))
        assert len(columns.token_ids.unique()) == len(columns.token_ids)
    assert sum(draws) / len(draws) == pytest.approx(whole, rel=5e-3)
    assert min(draws) < whole < max(draws)


def test_every_answer_is_in_every_epoch_once() -> None:
    settings = TrainSettings(epochs=2, learning_rate=1.0, batch_tokens=20, soft_labels=0.0, seed=0)
    batches = plan_batches([7] * 10, settings)
    flat = [answer for batch in batches for answer in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert [len(batch) for batch in batches] == [3, 3, 3, 1, 3, 3, 3, 1]


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    shares = [learning_rate_share(step, 100) for step in range(100)]
    assert shares.index(max(shares)) in (4, 5)
    assert max(shares) == 1.0
    assert 0 < shares[-1] < 0.01
    assert shares[5:] == sorted(shares[5:], reverse=True)


def test_only_frequent_tokens_are_proposed_where_that_is_asked(tmp_path: Path) -> None:
    lm_head, features = _toy(32)
    heads = _heads(lm_head)
    few = torch.arange(5)
    evaluation = evaluate(heads, lm_head, features, [0, 1, 2], few)
    assert [len(row) for row in evaluation.accuracy] == [5, 5]
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in evaluation.probability if any(row))
