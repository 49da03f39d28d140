"""A run from start to end: each phase in order, each going on from what it finds in OUTPUT/work."""

from collections.abc import Sequence

import click
import torch
from torch import Tensor

from trainer.answers import Answer, is_held_out, read_answers, usable
from trainer.ask import asked
from trainer.base import load_base
from trainer.config import TrainConfig
from trainer.errors import TrainError
from trainer.evaluate import Evaluation, evaluate
from trainer.features import Features, compute_features
from trainer.files import fingerprint, read_json
from trainer.heads import make_heads
from trainer.lock import claimed
from trainer.memory import enough_memory
from trainer.model import BaseModel, resolved_base
from trainer.output import write_heads
from trainer.tokenizer import BaseTokenizer
from trainer.train import TrainSettings, token_counts, train

_FREE_OR_CPU = "end what else runs there, or give --device cpu"


def run(config: TrainConfig) -> Evaluation:
    """Raises TrainError, and the launcher's LaunchError, with a message for the user."""
    config = config.checked()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = resolved_base(config)
    found = read_json(config.output / "config.json")
    if config.output.resolve() == model.folder.resolve() or (found and "medusa_num_heads" not in found):
        raise TrainError(f"--output {config.output} holds a model; give a folder of its own")
    with claimed(config.work):
        return _trained(config, model)


def _trained(config: TrainConfig, model: BaseModel) -> Evaluation:
    tokenizer = BaseTokenizer(model.folder)
    given = [answer for path in config.answers for answer in read_answers(path, tokenizer)]
    if config.data or config.self_prompts:
        given += asked(config, model, tokenizer)
    with enough_memory("the base", _FREE_OR_CPU):
        base = load_base(model.folder, model.device)
    answers = usable(given, vocab_size=base.vocab_size, max_positions=base.max_positions)
    training, held_out = _split(answers, config.held_out)
    click.echo(f"{len(training)} answers to train on, {len(held_out)} held out")
    with enough_memory("computing the features", _FREE_OR_CPU):
        features = compute_features(base, answers, config.work, model=model.mark)
    lm_head = base.lm_head
    del base  # the body is not needed any more, and heads need its memory
    settings = TrainSettings(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_tokens=config.batch_tokens,
        soft_labels=config.soft_labels,
        seed=config.seed,
    )
    made_from = fingerprint(
        [model.mark, config.version, config.num_heads, config.num_layers, model.device.type],
        [[answers[number].prompt_token_ids, answers[number].token_ids] for number in training],
    )
    with enough_memory("training the heads", f"give fewer --heads or --layers, or --version v2, {_FREE_OR_CPU}"):
        heads = make_heads(lm_head, version=config.version, num_heads=config.num_heads, num_layers=config.num_layers)
        train(heads, lm_head, features, training, settings, config.work, made_from=made_from)
    token_ids = _frequent_tokens(features, training, config.frequent_tokens, len(lm_head))
    proposable = None if token_ids is None else token_ids.to(model.device)
    with enough_memory("evaluating the heads", _FREE_OR_CPU):
        evaluation = evaluate(heads, lm_head, features, held_out, proposable)
    write_heads(
        config.output,
        heads,
        base_name=model.name,
        base_revision=model.revision,
        base_folder=model.folder,
        version=config.version,
        num_layers=config.num_layers,
        evaluation=evaluation,
        token_ids=None if token_ids is None else token_ids.tolist(),
    )
    return evaluation


def _split(answers: Sequence[Answer], held_out_share: float) -> tuple[list[int], list[int]]:
    """(to train on, held out): numbers of answers, both with some."""
    held_out = [number for number, answer in enumerate(answers) if is_held_out(answer, held_out_share)]
    training = [number for number, answer in enumerate(answers) if not is_held_out(answer, held_out_share)]
    if not held_out or not training:
        raise TrainError(
            f"{len(answers)} answers are too few to hold out {held_out_share:g} of them; give more prompts"
        )
    return training, held_out


def _frequent_tokens(features: Features, answers: Sequence[int], limit: int, vocab_size: int) -> Tensor | None:
    """[at most `limit`] ids in rising order, the most frequent ones of `answers`; None for no limit."""
    if limit == 0:
        return None
    counts = token_counts(features, answers, vocab_size)
    return counts.topk(min(limit, int((counts > 0).sum()))).indices.sort().values
