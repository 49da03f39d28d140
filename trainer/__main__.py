"""`train-medusa …` or `python -m trainer …`: the flags, and what a run says at its end."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from launcher.errors import LaunchError
from trainer.config import TrainConfig
from trainer.errors import TrainError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)
_SHARE = click.FloatRange(0, 1)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True})
@click.option("--model-id", help="Hub id, local folder or GGUF file of the base.  [default: the default model]")
@click.option("--revision", help="Branch, tag or commit of a base from the hub.")
@click.option("--data", multiple=True, type=_FILE, help="JSONL file of prompts: chats, prompts, questions or texts.")
@click.option("--self-prompts", default=0, type=click.IntRange(min=0), help="Prompts the base writes by itself.")
@click.option(
    "--answers",
    multiple=True,
    type=_FILE,
    help="JSONL file of answers of the base: token_ids, and prompt_token_ids or prompt.",
)
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the heads.")
@click.option("--version", default="v2", type=click.Choice(["v1", "v2"]), help="v1: projections of their own.")
@click.option("--heads", "num_heads", default=4, type=click.IntRange(1, 16), help="Number of heads.")
@click.option("--layers", "num_layers", default=1, type=click.IntRange(min=0), help="Residual layers of a head.")
@click.option("--max-prompts", type=_COUNT, help="Most prompts to answer, drawn from all.  [default: all]")
@click.option("--max-answer-tokens", default=192, type=click.IntRange(min=2), help="Most tokens of an answer.")
@click.option("--sampled-fraction", default=0.0, type=_SHARE, help="Share of answers sampled at temperature 0.7.")
@click.option("--service", help="host:port of a running service with the base.  [default: one is started]")
@click.option("--epochs", default=4, type=_COUNT, help="Passes over the answers.")
@click.option("--learning-rate", default=1e-3, type=click.FloatRange(min=0, min_open=True), help="At its highest.")
@click.option("--batch-tokens", default=2048, type=_COUNT, help="Tokens of a training step.")
@click.option("--soft-labels", default=0.0, type=_SHARE, help="Share of the base's distribution in the targets.")
@click.option("--frequent-tokens", default=0, type=click.IntRange(min=0), help="With v2, propose only so many; 0: all.")
@click.option(
    "--held-out",
    default=0.03,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of prompts to measure on.",
)
@click.option("--seed", default=0, type=click.IntRange(0, 2**32 - 1), help="Of everything that is drawn.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--threads", type=_COUNT, help="Threads on CPU.  [default: all cores]")
def main(**flags: Any) -> None:
    """Train Medusa heads for a frozen base, on the base's own answers to prompts.

    Killed at any moment, the same command goes on where it was. The folder serves at once: launcher --model-id OUTPUT.
    """
    # Python's own way out would leave a started service to the kernel, and its files to nobody.
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks for
        signal.signal(signal.SIGHUP, _end)

    from trainer.pipeline import run  # torch and transformers: seconds that --help need not wait

    config = TrainConfig(**flags)
    try:
        evaluation = run(config)
    except (TrainError, LaunchError, OSError) as error:
        click.echo(f"train-medusa: {error}", err=True)
        sys.exit(1)
    click.echo(evaluation.table())
    click.echo(f"{config.output} holds the heads; serve them with: launcher --model-id {config.output}")


def _end(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        # Of one terminal that closes, the kernel and the shell may both say so; the second would cut the end short.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main(prog_name="train-medusa")
