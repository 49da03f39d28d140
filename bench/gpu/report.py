"""The figures of a run, as a table and as JSON. Pure."""

import json
from dataclasses import asdict, dataclass, field, replace

from bench.gpu.attention import TOLERANCE, Case
from bench.gpu.prompts import PromptTime
from bench.gpu.service_speed import ServiceSpeed
from bench.gpu.step_times import PromptStepTime, StepCase, StepTime
from bench.statistic import table


def is_small(difference: float) -> bool:
    # Of NaN this is false.
    return difference <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Measured:
    """Attention of one layer: the greatest difference from the reference, and the time it takes."""

    case: Case
    difference: float
    layer_s: float

    @property
    def bandwidth(self) -> float:
        """At which committed keys and values are read, bytes/s."""
        return self.case.kv_bytes / self.layer_s


@dataclass(frozen=True, slots=True)
class Figures:
    """`copy_bandwidth` in bytes/s, `product_speed` in operations/s."""

    device: str
    torch: str
    attention_kernel: str
    copy_bandwidth: float
    product_speed: float
    tests: str = "not run"
    tests_passed: bool = True
    attention: list[Measured] = field(default_factory=list)
    prompts: list[PromptTime] = field(default_factory=list)
    steps: list[StepTime] = field(default_factory=list)
    prompt_steps: list[PromptStepTime] = field(default_factory=list)
    # A step of transformers by case; without those that did not work.
    peer_s: dict[StepCase, float] = field(default_factory=dict)
    service: list[ServiceSpeed] = field(default_factory=list)
    # Of a part each: which, and why. Left out is what needs a package that this machine lacks.
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        differences = [m.difference for m in self.attention] + [p.difference for p in self.prompts]
        return self.tests_passed and not self.failures and all(map(is_small, differences))


def to_json(figures: Figures) -> str:
    attention = [
        {**asdict(m.case), "difference": m.difference, "layer_us": 1e6 * m.layer_s, "bandwidth": m.bandwidth}
        for m in figures.attention
    ]
    steps = [
        {**asdict(s.case), "step_ms": 1e3 * s.step_s, "read_bytes": s.read_bytes, "bandwidth": s.bandwidth}
        for s in figures.steps
    ]
    prompts = [{**asdict(p), "speed": p.speed} for p in figures.prompts]
    prompt_steps = [{**asdict(p), "speed": p.speed} for p in figures.prompt_steps]
    peer = [{**asdict(case), "step_ms": 1e3 * step_s} for case, step_s in figures.peer_s.items()]
    whole = {**asdict(replace(figures, peer_s={})), "is_right": figures.is_right}
    whole |= {"attention": attention, "prompts": prompts, "steps": steps, "prompt_steps": prompt_steps, "peer_s": peer}
    return json.dumps(whole, indent=2)


def to_text(figures: Figures) -> str:
    """The last thing printed: short, and whether all is right at its end."""
    rows = [
        [
            str(m.case.batch),
            str(m.case.context),
            str(m.case.rows),
            f"{1e6 * m.layer_s:.1f}",
            f"{m.bandwidth / 1e12:.2f}",
            f"{m.bandwidth / figures.copy_bandwidth:.0%}",
            _difference(m.difference),
        ]
        for m in figures.attention
    ]
    header = ["batch", "context", "rows", "us/layer", "TB/s", "of copy", "difference"]
    return "\n".join(
        [
            f"{figures.device}, torch {figures.torch}, attention by {figures.attention_kernel}",
            f"copy {figures.copy_bandwidth / 1e12:.2f} TB/s, bf16 product {figures.product_speed / 1e12:.0f} TFLOP/s",
            f"tests: {figures.tests}",
            table(header, rows),
            *_prompt_table(figures),
            *_step_table(figures),
            *_prompt_step_table(figures),
            *_service_table(figures),
            *(f"left out: {part}" for part in figures.left_out),
            *(f"failed: {failure}" for failure in figures.failures),
            "all right" if figures.is_right else "NOT RIGHT",
        ]
    )


def _difference(difference: float) -> str:
    return f"{difference:.4f}" + ("" if is_small(difference) else " WRONG")


def _prompt_table(figures: Figures) -> list[str]:
    rows = [
        [
            str(p.case.context),
            str(p.case.length),
            f"{1e6 * p.layer_s:.0f}",
            f"{p.speed / 1e12:.0f}",
            "" if p.flash_s is None else f"{1e6 * p.flash_s:.0f}",
            _difference(p.difference),
        ]
        for p in figures.prompts
    ]
    return [table(["context", "prompt", "us/layer", "TFLOP/s", "torch's flash, us", "difference"], rows)]


def _prompt_step_table(figures: Figures) -> list[str]:
    rows = [
        [
            str(p.length),
            f"{1e3 * p.step_s:.1f}",
            f"{p.length / p.step_s:.0f}",
            f"{p.speed / 1e12:.0f}",
            f"{p.speed / figures.product_speed:.0%}",
        ]
        for p in figures.prompt_steps
    ]
    return [table(["whole prompt", "ms", "tokens/s", "TFLOP/s", "of product"], rows)] if rows else []


def _step_table(figures: Figures) -> list[str]:
    if not figures.steps:
        return ["whole steps: not run"]
    rows = [
        [
            str(s.case.batch),
            str(s.case.context),
            str(s.case.drafts),
            s.case.quantize or "16 bit",
            f"{1e3 * s.step_s:.2f}",
            f"{s.bandwidth / 1e12:.2f}",
            f"{s.bandwidth / figures.copy_bandwidth:.0%}",
            f"{1e3 * figures.peer_s[s.case]:.2f}" if s.case in figures.peer_s else "",
        ]
        for s in figures.steps
    ]
    return [table(["batch", "context", "drafts", "weights", "ms/step", "TB/s", "of copy", "transformers, ms"], rows)]


def _service_table(figures: Figures) -> list[str]:
    if not figures.service:
        return ["service: not measured"]
    rows = [
        [
            s.model,
            s.workload,
            str(s.at_once),
            f"{s.off:.0f}",
            f"{s.on:.0f}",
            f"{s.ratio:.3f}",
            f"{s.drafts_per_step:.1f}",
        ]
        for s in figures.service
    ]
    return [table(["model", "text", "at once", "off, tokens/s", "on", "on / off", "drafts/step"], rows)]
