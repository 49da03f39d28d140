"""The checked-in stubs are what the pinned tools make of the .proto files."""

import os
import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parent.parent / "proto"


def test_generated_stubs_are_up_to_date(tmp_path: Path) -> None:
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([PROTO / "generate.sh", tmp_path], check=True, env=environ, capture_output=True)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    checked_in = {
        path.relative_to(PROTO): path.read_text()
        for path in PROTO.rglob("*_pb2*.py*")
        if path.suffix in (".py", ".pyi")
    }
    assert made == checked_in, "run `make proto`"
