"""An engine without shards that says each prompt token back, and the real servers around it on loopback."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from router.errors import Overloaded, Unavailable
from router.grpc_server import GrpcServer
from router.http_server import HttpServer
from router.metrics import Metrics
from router.request import GenerationOutput, GenerationRequest, Limits, ModelInfo
from router.sequence import FinishReason
from router.tokenizer import Tokenizer
from tests.router.tiny_tokenizers import byte_level

PAYLOAD_LIMIT = 100_000
MAX_REQUESTS = 5


@dataclass
class FakeEngine:
    """Prompts are echoed token by token; `error` is raised after the first token, `hang` waits there for ever."""

    tokenizer: Tokenizer
    is_ready: bool = True
    is_draining: bool = False
    has_started: bool = True
    hang: bool = False
    error: Exception | None = None
    # Among those that have not come to it yet.
    most_requests: int = 1000
    requests: list[GenerationRequest] = field(default_factory=list)
    num_open: int = 0
    # Of those that have not come to it, at one time.
    most_others: int = 0
    num_closed_early: int = 0

    def refuse_if_full(self, num_others: int, /) -> None:
        self.most_others = max(self.most_others, num_others)
        if self.num_open + num_others >= self.most_requests:
            raise Overloaded(f"{self.most_requests} requests are here", retry_after_s=1.0)

    def limits(self) -> Limits:
        if not self.has_started:
            raise Unavailable("the shards have not started")
        return Limits(max_total_tokens=50_000, max_input_tokens=40_000, max_speculative_tokens=3, vocab_size=300)

    def model_info(self) -> ModelInfo:
        return ModelInfo(
            model_id="tiny",
            revision="r1",
            weights="random",
            model_type="llama",
            dtype="float32",
            device="cpu",
            num_shards=2,
            max_total_tokens=50_000,
            max_batch_size=8,
            num_blocks=99,
            block_size=16,
            vocab_size=300,
            speculate=3,
            tree_size=3,
            heads="v1, 3 of 3 heads with 1 layer",
            version="0.1.0",
            speculation_methods=("ngram",),
            kernels={"linear": "torch"},
        )

    async def generate(self, request: GenerationRequest, /) -> AsyncGenerator[GenerationOutput, None]:
        self.requests.append(request)
        self.num_open += 1
        has_finished = False
        try:
            token_ids = request.prompt_token_ids[: request.max_new_tokens]
            for token_id in token_ids[:-1]:
                logprobs = [-0.5] if request.logprobs else []
                yield GenerationOutput(self.tokenizer.decode([token_id]), [token_id], logprobs)
                if self.error is not None:
                    raise self.error
                await asyncio.sleep(3600 if self.hang else 0)
            has_finished = True
            yield GenerationOutput(
                text=self.tokenizer.decode(token_ids[-1:]),
                token_ids=token_ids[-1:],
                logprobs=[-0.5] if request.logprobs else [],
                finish_reason=FinishReason.STOP if len(token_ids) < request.max_new_tokens else FinishReason.LENGTH,
                num_cached_prompt_tokens=1,
                num_generated_tokens=len(token_ids),
                num_steps=2,
                num_drafted_tokens=5,
                num_accepted_tokens=4,
            )
        finally:
            self.num_open -= 1
            self.num_closed_early += not has_finished


@dataclass
class Served:
    engine: FakeEngine
    metrics: Metrics
    grpc_server: GrpcServer
    http_server: HttpServer

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_server.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_server.port}"

    def num_requests(self, status: str) -> float | None:
        return self.metrics.registry.get_sample_value("drafthouse_requests_total", {"status": status})


@asynccontextmanager
async def serve(host: str = "127.0.0.1") -> AsyncIterator[Served]:
    tokenizer = Tokenizer(byte_level(), eos_token_ids=frozenset({264}))
    engine, metrics = FakeEngine(tokenizer), Metrics()
    grpc_server = GrpcServer(
        engine, tokenizer, metrics, host=host, port=0, payload_limit=PAYLOAD_LIMIT, max_concurrent_requests=MAX_REQUESTS
    )
    http_server = HttpServer(engine, metrics, host=host, port=0)
    await grpc_server.start()
    await http_server.start()
    try:
        yield Served(engine, metrics, grpc_server, http_server)
    finally:
        await http_server.stop()
        await grpc_server.stop(grace_s=0)


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until `condition` holds, and no more than 120 s."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)
