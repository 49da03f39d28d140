"""What a user sees of a benchmark that cannot go on."""

import pytest

from bench.errors import BenchError, told_to_user
from launcher.errors import LaunchError


@pytest.mark.parametrize("error", [BenchError("no service"), LaunchError("no service")])
def test_a_failure_with_a_message_is_its_message(error: Exception) -> None:
    with pytest.raises(SystemExit, match="bench: no service"), told_to_user():
        raise error


def test_any_other_failure_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="ours"), told_to_user():
        raise ValueError("ours")
