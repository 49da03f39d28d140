from launcher.agent_log import AgentLog

PREFIX = "1123 16:21:47.153000 4402 site-packages/torch/distributed/elastic/multiprocessing/api.py:1002]"


def test_a_failed_shard_is_reported_without_names_of_functions() -> None:
    line = f"E{PREFIX} failed (exitcode: -9) local_rank: 1 (pid: 4406) of fn: _begin (start_method: fork)"
    assert AgentLog().feed(line) == [("warning", "shard failed (exitcode: -9) local_rank: 1 (pid: 4406)")]


def test_what_every_restart_says_is_for_debugging_only() -> None:
    assert AgentLog().feed(f"W{PREFIX} Closing process 4407 via signal SIGTERM")[0][0] == "debug"


def test_the_summary_of_failed_shards_is_dropped() -> None:
    agent = AgentLog()
    lines = ["Traceback (most recent call last):", "    raise ChildFailedError(", "====", "rank : 0 (local_rank: 0)"]
    assert [entry for line in lines for entry in agent.feed(line)] == []
    assert agent.close() == []


def test_the_traceback_behind_a_failed_shard_is_dropped_and_what_follows_is_not() -> None:
    agent = AgentLog()
    lines = ["Traceback (most recent call last):", "    raise ProcessExitedException(", "x.ProcessExitedException: 1"]
    assert [entry for line in lines for entry in agent.feed(f"E{PREFIX} {line}")] == []
    assert agent.feed(f"E{PREFIX} no port") == [("error", "no port")]
    assert agent.close() == []


def test_another_traceback_that_is_logged_comes_out_whole() -> None:
    agent = AgentLog()
    lines = ["Traceback (most recent call last):", "    connect()", "OSError: no route"]
    entries = [entry for line in lines for entry in agent.feed(f"E{PREFIX} {line}")]
    assert entries == [("error", line) for line in lines]


def test_a_traceback_of_the_agent_itself_is_kept_whole() -> None:
    agent = AgentLog()
    lines = ["Traceback (most recent call last):", '  File "run.py"', "ImportError: no torch"]
    assert [entry for line in lines for entry in agent.feed(line)] == []
    assert agent.close() == [("error", line) for line in lines]
