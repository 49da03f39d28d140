"""Files that survive a kill: written whole under another name and renamed, or appended to line by line.

A phase that is finished says what it was made from; a phase made from something else is done again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trainer.errors import TrainError


def fingerprint(*parts: object) -> str:
    """Of anything JSON can hold; equal parts give equal fingerprints on any machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, content: object) -> None:
    """Whole or not at all. Raises TrainError."""
    text = json.dumps(content, indent=1) + "\n"
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_whole(path: Path, save: Callable[[Path], object]) -> None:
    """`save` writes a file of that name, under another one at first. Raises TrainError; then nothing is left."""
    partial = path.with_name(path.name + ".partial")
    try:
        save(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        # As a full disk is called by who writes tensors.
        partial.unlink(missing_ok=True)
        raise TrainError(f"{path} cannot be written: {error}") from error
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None if there is no such file. Raises TrainError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path} is not JSON ({error}); mend or delete it") from error
    if not isinstance(content, dict):
        raise TrainError(f"{path} is not a JSON object; mend or delete it")
    return content


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, object) of a JSONL file. Raises TrainError naming the line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        entry = json.loads(line)
                        json.dumps(entry, ensure_ascii=False).encode()
                    except UnicodeEncodeError as error:
                        raise TrainError(f"{path}, line {number}: half of a surrogate pair is no text") from error
                    except (ValueError, RecursionError) as error:
                        raise TrainError(f"{path}, line {number}: not JSON ({error})") from error
                    if not isinstance(entry, dict):
                        raise TrainError(f"{path}, line {number}: a JSON object is needed")
                    yield number, entry
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{path} cannot be read: {error}") from error


def drop_torn_line(path: Path) -> None:
    """Cuts what a killed writer left of its last line."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
