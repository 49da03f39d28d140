"""A router engine inside the test, for shard groups that are fakes or real processes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from router.config import parse_args
from router.engine import Engine
from router.metrics import Metrics
from router.request import GenerationOutput, GenerationRequest
from router.sequence import SamplingParams
from router.tokenizer import Tokenizer
from tests.router.tiny_tokenizers import byte_level_tokenizer


def generation_request(
    prompt: list[int],
    *,
    new: int = 8,
    k: int = 0,
    sampling: SamplingParams | None = None,
    stop_token_ids: frozenset[int] = frozenset(),
    stop_strings: tuple[str, ...] = (),
    logprobs: bool = False,
    timeout_s: float | None = None,
) -> GenerationRequest:
    return GenerationRequest(
        request_id="test",
        prompt_token_ids=prompt,
        sampling=sampling or SamplingParams(),
        max_new_tokens=new,
        stop_strings=stop_strings,
        stop_token_ids=stop_token_ids,
        num_speculative_tokens=k,
        logprobs=logprobs,
        deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
    )


async def collect(outputs: AsyncGenerator[GenerationOutput, None]) -> list[GenerationOutput]:
    """All outputs; exactly the last one ends the stream."""
    got = [output async for output in outputs]
    assert [o.finish_reason is not None for o in got] == [False] * (len(got) - 1) + [True]
    return got


class Service:
    """`loop` is the engine's task."""

    def __init__(self, engine: Engine, metrics: Metrics, loop: asyncio.Task[None]) -> None:
        self.engine = engine
        self.metrics = metrics
        self.loop = loop

    async def tokens(self, wanted: GenerationRequest) -> list[int]:
        return [token for output in await collect(self.engine.generate(wanted)) for token in output.token_ids]

    async def ready(self, timeout_s: float = 120) -> None:
        async with asyncio.timeout(timeout_s):
            while not self.engine.is_ready:
                await asyncio.sleep(0.01)

    def value(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value

    def total(self, name: str, **labels: str) -> float:
        """Over the labels that are not given."""
        samples = [s for metric in self.metrics.registry.collect() for s in metric.samples if s.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@contextlib.asynccontextmanager
async def service(
    folder: Path,
    *,
    num_ranks: int = 1,
    max_concurrent_requests: int = 8,
    step_timeout_s: float = 5.0,
    enable_prefix_caching: bool = True,
    tokenizer: Tokenizer | None = None,
) -> AsyncIterator[Service]:
    """Rank r is expected on `folder`/s-r."""
    metrics = Metrics()
    where = [f"--model-path={folder}", f"--shard-uds-path={folder}/s", f"--run-dir={folder}"]
    config = replace(
        parse_args(["--model-id=test", f"--num-shard={num_ranks}", *where]),
        max_concurrent_requests=max_concurrent_requests,
        step_timeout=step_timeout_s,
        disable_prefix_caching=not enable_prefix_caching,
    )
    engine = Engine(config, tokenizer=tokenizer or byte_level_tokenizer(), metrics=metrics)
    loop = asyncio.create_task(engine.run())
    try:
        yield Service(engine, metrics, loop)
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


def run(scenario: Callable[[], Awaitable[None]], *, timeout_s: float = 120) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(timeout_s):
            await scenario()

    asyncio.run(bounded())
