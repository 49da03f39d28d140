"""Which files hold tests of Triton kernels that its interpreter runs. By what they hold: a new one is found."""

from pathlib import Path

_TESTS = Path(__file__).parent
_ASKED = "from tests.shard.triton_device import "


def interpreted_files() -> list[Path]:
    return [file for file in sorted(_TESTS.rglob("test_*.py")) if is_interpreted(file)]


def is_interpreted(file: Path) -> bool:
    """Whether a file of tests asks if Triton interprets."""
    if not file.match("test_*.py"):
        return False
    return any(line.startswith(_ASKED) and "INTERPRETED" in line for line in file.read_text().splitlines())
