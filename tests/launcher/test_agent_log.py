from launcher.agent_log import AgentLog

PREFIX = "1123 16:21:47.153000 4402 site-packages/torch/distributed/elastic/multiprocessing/api.py:1002]"


def test_a_failed_shard_is_reported_without_the_path_of_python() -> None:
    line = f"E{PREFIX} failed (exitcode: -9) local_rank: 1 (pid: 4406) of binary: /venv/bin/python"
    assert AgentLog().feed(line) == [("warning", "shard failed (exitcode: -9) local_rank: 1 (pid: 4406)")]


def test_what_every_orderly_stop_says_is_for_debugging_only() -> None:
    assert AgentLog().feed(f"W{PREFIX} Sending process 4407 closing signal SIGTERM")[0][0] == "debug"


def test_the_summary_of_failed_shards_is_dropped() -> None:
    agent = AgentLog()
    lines = ["Traceback (most recent call last):", "    raise ChildFailedError(", "====", "rank : 0 (local_rank: 0)"]
    assert [entry for line in lines for entry in agent.feed(line)] == []
    assert agent.close() == []


def test_a_traceback_of_the_agent_itself_is_kept_whole() -> None:
    agent = AgentLog()
    lines = ["Traceback (most recent call last):", '  File "run.py"', "ImportError: no torch"]
    assert [entry for line in lines for entry in agent.feed(line)] == []
    assert agent.close() == [("error", line) for line in lines]
