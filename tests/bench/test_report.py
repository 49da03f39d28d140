"""The page of a run, and the tables in it that are of what each system reached and of where our time goes."""

from dataclasses import replace

from bench.config import parse_args
from bench.machine import Machine
from bench.measure import Turn
from bench.metrics import Steps
from bench.peers.process import About
from bench.report import Run, report
from bench.report_speed import sameness, speed_table, time_table
from bench.sample import Arrival, Sample
from drafthouse.v1 import generation_pb2
from tests.bench.turns import LOOKUP, OFF, ON, PEER, turn


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_speed_is_of_all_turns_of_a_system_and_a_workload() -> None:
    # Ten tokens: the first after .1 s, then two at a time but for the last, 20 ms between arrivals.
    arrivals = tuple(Arrival(0.1 + 0.02 * n, count) for n, count in enumerate([1, 2, 2, 2, 2, 1]))
    sample = Sample("p", "chat", tuple(range(10)), arrivals, num_steps=6)
    fast = Turn(1, ON, "chat", 1, (sample,), wall_s=0.2, limit=100.0)
    slow = replace(fast, place=2, wall_s=0.25)
    _, _, *rows = cells(speed_table([fast, slow, turn(1, PEER, 20, batch=2), turn(1, PEER, 20, workload="code")]))
    assert [row[:2] for row in rows] == [["1 chat", ON.name], ["1 code", PEER.name], ["2 chat", PEER.name]]
    # 9 tokens in .1 s: .9 of the limit.
    assert rows[0][2:] == ["45.0", "100", "10.0", "20.0", "1.67", "90 %", "2"]


def test_time_is_of_our_turns_alone_and_of_steps_without_prompts() -> None:
    steps = Steps(num=11, seconds=0.5, prompt_num=1, prompt_seconds=0.4)
    ours = replace(turn(1, OFF, 10, limit=200.0), steps=steps, router_cpu_s=0.022, client_cpu_s=0.011)
    _, _, row = cells(time_table([ours, replace(ours, place=2), turn(1, PEER, 10)]))
    assert row == ["1", OFF.name, "22", "10.00", "100.00", "50 %", "50 %", "2.00", "1.00"]


def test_answers_are_compared_with_ours_without_speculation() -> None:
    first, second = turn(1, OFF, 10), turn(2, OFF, 10)
    second = replace(second, samples=(replace(second.samples[0], prompt_id="q"),))
    other = replace(second, system=PEER, samples=(replace(second.samples[0], token_ids=(7,)),))
    batched = turn(1, LOOKUP, 10, batch=2)
    text = sameness([first, second, replace(first, system=ON), replace(first, system=PEER), other, batched])
    assert f"of 2 answers: {ON.name} 1, {PEER.name} 1." in text


def test_the_page_says_what_was_run_on_which_machine_and_who_was_missing() -> None:
    turns = [turn(1, OFF, 50), turn(1, ON, 60), turn(1, PEER, 20)]
    turns = [replace(made, steps=Steps(10, 0.1, 1, 0.05)) for made in turns]
    run = Run(
        config=parse_args(["--threads", "2", "--rounds", "7"]),
        machine=Machine("a processor", weights_bytes=269_000_000, kv_bytes=23_040),
        info=generation_pb2.GetModelInfoResponse(model_id="org/model", dtype="bfloat16", kernels={"linear": "ours"}),
        start_s=6.125,
        turns=turns,
        peers={PEER: About("1.2", "bf16", 3.0)},
        absent={"gone": "it cannot be installed"},
        notes=["one was stopped between turns"],
    )
    text = report(run, plots=["![plot](a.svg)"], never_slower="### Never slower\n\nkept")
    for words in (
        "## org/model, bfloat16, ",
        "rounds 7, ",
        "- a processor\n",
        "- weights as stored; kernels linear ours; ready in 6.1 s",
        "269 MB of weights and 23 kB a token of context: the memory allowed 100 (100–100) steps/s",
        "- peers: peer 1.2 (bf16, ready in 3 s)\n",
        "- **gone takes no turns**: it cannot be installed",
        "- one was stopped between turns",
        "### Never slower\n\nkept",
        "![plot](a.svg)",
    ):
        assert words in text
    headings = [line for line in text.splitlines() if line.startswith("###")]
    assert headings == [
        "### Verdicts",
        "### Against the best peer",
        "### Speed",
        "### Share of the bandwidth limit, one sequence without speculation",
        "### Never slower",
        "### Where the time goes",
        "### Plots",
    ]
