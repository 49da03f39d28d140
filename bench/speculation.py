"""`python -m bench.speculation`: what each way of drafting brings on Spec-Bench's categories, one prompt at a time.

A server for each way, all started at once; every prompt is answered by each directly after the other, never two at the
same time, and who begins rotates. A speed-up is formed within a prompt, against the same service without drafts.
"""

import argparse
import asyncio
import json
import random
import statistics
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Client
from bench.config import positive
from bench.errors import told_to_user
from bench.prompts import Prompt
from bench.sample import Sample
from bench.say import say
from bench.server import launched
from bench.statistic import spread, table
from launcher.machine import usable_cores

# Spec-Bench (H. Xia et al. 2024, arXiv 2401.07851) keeps the eight categories of MT-bench apart; its tables, and ours,
# have them as one.
_OF_THEIR_OWN = {
    "translation": "translation",
    "summarization": "summarization",
    "qa": "question answering",
    "math_reasoning": "math",
    "rag": "retrieval",
}
_MT_BENCH = "MT-bench"

OFF = "off"
# Flags of the server for each way of drafting; `off` asks the last one for no drafts.
_SERVERS = {
    "ngram": ["--speculation-method=ngram"],
    "Medusa chain": ["--speculation-method=medusa", "--tree-width=1"],
    "Medusa tree": ["--speculation-method=medusa"],
    "hybrid": ["--speculation-method=hybrid"],
}


@dataclass(slots=True)
class Figures:
    """Samples of one category, by way of drafting, in the order of its prompts."""

    samples: dict[str, list[Sample]] = field(default_factory=lambda: {way: [] for way in (OFF, *_SERVERS)})

    def tokens_per_step(self, way: str) -> float:
        """Of all steps but the first, which is the prompt's and checks nothing."""
        samples = self.samples[way]
        return sum(s.num_tokens - 1 for s in samples) / sum(s.num_steps - 1 for s in samples)

    def speed_up(self, way: str) -> list[float]:
        pairs = zip(self.samples[way], self.samples[OFF], strict=True)
        return [ours.decode_tokens_per_s / off.decode_tokens_per_s for ours, off in pairs]


def load_categories(path: Path, *, each: int) -> dict[str, list[Prompt]]:
    """First turns of Spec-Bench's questions, at most `each` of a category, drawn evenly over the file."""
    found: dict[str, list[Prompt]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        category = _OF_THEIR_OWN.get(question["category"], _MT_BENCH)
        found.setdefault(category, []).append(Prompt(str(question["question_id"]), category, question["turns"][0]))
    rng = random.Random(0)
    return {category: rng.sample(prompts, min(each, len(prompts))) for category, prompts in found.items()}


def report(figures: dict[str, Figures]) -> str:
    """Markdown: tokens per step, then speed-ups."""
    ways = list(_SERVERS)
    everything = Figures({way: [s for f in figures.values() for s in f.samples[way]] for way in (OFF, *ways)})
    rows = [*figures.items(), ("all", everything)]
    steps = [[name, str(len(f.samples[OFF])), *(f"{f.tokens_per_step(way):.2f}" for way in ways)] for name, f in rows]
    speeds = [[name, str(len(f.samples[OFF])), *(spread(f.speed_up(way)) for way in ways)] for name, f in rows]
    off = statistics.median(s.decode_tokens_per_s for s in everything.samples[OFF])
    equal = sum(
        ours.token_ids == base.token_ids
        for way in ways
        for ours, base in zip(everything.samples[way], everything.samples[OFF], strict=True)
    )
    return "\n\n".join(
        [
            "Tokens per step:",
            table(["category", "prompts", *ways], steps),
            f"Decoding speed, times that without drafts ({off:.1f} tokens/s):",
            table(["category", "prompts", *ways], speeds),
            f"{equal} of {len(ways) * len(everything.samples[OFF])} answers equal those without drafts.",
        ]
    )


async def _measure(options: argparse.Namespace) -> dict[str, Figures]:
    categories = load_categories(options.spec_bench, each=options.prompts)
    with ExitStack() as servers:
        async with AsyncExitStack() as clients:
            asked: dict[str, Client] = {}
            for way, flags in _SERVERS.items():
                if options.speculate is not None:
                    flags = [*flags, f"--speculate={options.speculate}"]
                elif way == "ngram":
                    flags = [*flags, "--speculate=3"]
                if options.tree_size is not None and way in ("Medusa tree", "hybrid"):
                    flags = [*flags, f"--tree-size={options.tree_size}"]
                if options.draft_min_probability is not None:
                    flags = [*flags, f"--draft-min-probability={options.draft_min_probability}"]
                say(f"starting the server for {way}")
                server = servers.enter_context(
                    launched(
                        model_id=options.model_id, threads=options.threads, flags=[*flags, f"--dtype={options.dtype}"]
                    )
                )
                client = Client(server.grpc_address, max_new_tokens=options.max_new_tokens)
                asked[way] = await clients.enter_async_context(client)
            asked[OFF] = asked["hybrid"]
            return await _ask_all(categories, asked)


async def _ask_all(categories: dict[str, list[Prompt]], asked: dict[str, Client]) -> dict[str, Figures]:
    figures = {category: Figures() for category in categories}
    ways = [OFF, *_SERVERS]
    for way in ways:
        await asked[way].generate(next(iter(categories.values()))[0], speculate=_most(way))
    for category, prompts in categories.items():
        say(category)
        for number, prompt in enumerate(prompts):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                figures[category].samples[way].append(await asked[way].generate(prompt, speculate=_most(way)))
    return figures


def _most(way: str) -> int:
    # More than any server has: it takes its own bound.
    return 0 if way == OFF else 1000


@told_to_user()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speculation", description=__doc__)
    parser.add_argument("--spec-bench", type=Path, required=True, help="Spec-Bench's questions, JSONL")
    parser.add_argument("--model-id", help="a model with Medusa heads; unset: the default model")
    parser.add_argument("--dtype", default="bfloat16", help="as the launcher's (%(default)s)")
    parser.add_argument("--prompts", type=positive, default=8, help="of each category (%(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--threads", type=positive, default=usable_cores())
    parser.add_argument("--speculate", type=positive, help="unset: all heads, and 3 for n-gram alone")
    parser.add_argument("--tree-size", type=positive, help="unset: the service's default")
    parser.add_argument("--draft-min-probability", type=float, help="as the launcher's; unset: measured at its start")
    options = parser.parse_args()
    print(report(asyncio.run(_measure(options))))


if __name__ == "__main__":
    main()
