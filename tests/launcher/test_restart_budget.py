from launcher.restart_budget import RestartBudget


def test_starts_are_counted_in_a_sliding_window() -> None:
    budget = RestartBudget(max_starts=3, window_s=100.0)
    for now in (0.0, 10.0, 20.0):
        assert budget.can_start(now)
        budget.record_start(now)
    assert not budget.can_start(99.0)
    assert budget.can_start(100.0)  # the start at 0 has left the window
    budget.record_start(100.0)
    assert not budget.can_start(109.0)
    assert budget.can_start(110.0)


def test_the_first_restart_is_at_once_and_later_ones_wait_longer() -> None:
    budget = RestartBudget(max_starts=9, window_s=1000.0)
    delays = []
    for now in range(8):
        budget.record_start(float(now))
        delays.append(budget.delay_s())
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
