"""From the flags to the base's answers: prompts of --data and the base's own, answered by a service.

A service runs only while something is missing in OUTPUT/work.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.answers import Answer, read_answers
from trainer.client import connected
from trainer.collect import Journal, missing_answers, missing_self_prompts, write_answers, write_self_prompts
from trainer.config import TrainConfig
from trainer.model import DTYPE, BaseModel
from trainer.prompts import drawn, read_prompts
from trainer.service import launched
from trainer.tokenizer import BaseTokenizer


def asked(config: TrainConfig, model: BaseModel, tokenizer: BaseTokenizer) -> list[Answer]:
    """The base's answers. Raises TrainError; what has been answered by then is kept."""
    texts = read_prompts(config.data)
    own = Journal(config.work / "self_prompts.jsonl", model.mark, config.seed)
    journal = Journal(
        config.work / "answers.jsonl", model.mark, config.max_answer_tokens, config.sampled_fraction, config.seed
    )

    def prompts() -> list[list[int]]:
        written = [str(entry["prompt"]) for entry in own.entries() if entry["number"] < config.self_prompts]
        chosen = drawn([*texts, *(text for text in written if text)], config.max_prompts, config.seed)
        return [tokenizer.prompt_token_ids(text) for text in chosen]

    async def ask(address: str) -> None:
        async with connected(address) as client:
            numbers = missing_self_prompts(own, config.self_prompts)
            await write_self_prompts(client, tokenizer, own, numbers, seed=config.seed)
            await write_answers(
                client,
                journal,
                missing_answers(journal, prompts()),
                max_tokens=config.max_answer_tokens,
                sampled_fraction=config.sampled_fraction,
                seed=config.seed,
            )

    if missing_self_prompts(own, config.self_prompts) or missing_answers(journal, prompts()):
        with _service(config, model) as address:
            asyncio.run(ask(address))
    wanted = {tuple(prompt) for prompt in prompts()}
    answers = read_answers(journal.path, tokenizer) if journal.path.is_file() else []
    return [answer for answer in answers if answer.prompt_token_ids in wanted]


@contextmanager
def _service(config: TrainConfig, model: BaseModel) -> Iterator[str]:
    if config.service is not None:
        yield config.service
        return
    with launched(
        model.folder,
        dtype=DTYPE,
        use_gpu=model.device.type == "cuda",
        threads=config.threads,
        log_file=config.work / "service.log",
    ) as address:
        yield address
