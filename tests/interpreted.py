"""Which files hold tests of Triton kernels that its interpreter runs. By what they hold: a new one is found."""

from pathlib import Path

_TESTS = Path(__file__).parent
_ASKS = 'environ.get("TRITON_INTERPRET")'


def interpreted_files() -> list[Path]:
    return [file for file in sorted(_TESTS.rglob("test_*.py")) if is_interpreted(file)]


def is_interpreted(file: Path) -> bool:
    """Whether a file of tests asks if Triton interprets, or imports from another what that one was told."""
    if not file.match("test_*.py"):
        return False
    lines = file.read_text().splitlines()
    return any(_ASKS in line or (line.startswith("from tests.") and "INTERPRETED" in line) for line in lines)
