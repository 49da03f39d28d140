"""A folder here or a repository on the hub, looked into before anything large is fetched.

Reads only small JSON files. Must not know what makes a model or heads; `resolve.py` and `medusa.py` do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LaunchError
from launcher.hub import Reference, download, look_into
from launcher.logs import LogWriter


@dataclass(frozen=True, slots=True)
class Source:
    """`config`: of config.json, None where there is none. `names`: the files outside sub-folders.

    `folder` holds config.json; the other files are there only after `fetch`, unless `is_local`.
    """

    reference: Reference
    is_local: bool
    folder: Path
    config: Mapping[str, object] | None
    names: frozenset[str]
    cache: str | None

    def fetch(self, wanted: list[str], log: LogWriter, unwanted: list[str] | None = None) -> Path:
        """The folder with all files that match the patterns `wanted` and not `unwanted`."""
        return self.folder if self.is_local else download(self.reference, self.cache, wanted, log, unwanted)


def open_source(reference: Reference, cache: str | None, log: LogWriter) -> Source:
    """Looks for a local folder first, then for a repository. Raises LaunchError."""
    local = local_path(reference)
    if local.is_dir():
        refuse_revision(reference, "a local folder")
        folder, is_local = local.resolve(), True
        names = frozenset(path.name for path in folder.iterdir())
    elif _looks_like_a_path(reference.name):
        raise LaunchError(f"{reference.asked}: there is no such file or folder{reference.advice}")
    else:
        is_local = False
        folder, names = look_into(reference, cache, log)
    return Source(reference, is_local, folder, read_json(folder / "config.json"), names, cache)


def local_path(reference: Reference) -> Path:
    """Where it would be, were it here. Raises LaunchError."""
    path = Path(reference.name)
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise LaunchError(f"{reference.asked}: {path.parts[0]} is no home folder here{reference.advice}") from error


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith((".gguf", "/"))


def refuse_revision(reference: Reference, what: str) -> None:
    if reference.revision is not None:
        raise LaunchError(
            f"{reference.revision_flag} {reference.revision} is for repositories of the hub, "
            f"but {reference.asked} is {what}"
        )


def read_json(path: Path) -> dict[str, object] | None:
    """The object in a file, None if there is no such file. Raises LaunchError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise LaunchError(f"{path} cannot be read: it is not a JSON object")
    return content
