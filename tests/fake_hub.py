"""A hub that is a folder of repositories here."""

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub


class FakeHub:
    """Stands in for the functions of huggingface_hub; `fetched` has each repository's files that were brought here."""

    def __init__(self, folder: Path) -> None:
        self.remote, self.cache = folder / "remote", folder / "cache"
        self.offline = False
        self.revisions: dict[str, set[str | None]] = {}

    @classmethod
    def installed(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeHub":
        """In the place of the real one, and `folder` is the one that a test works in."""
        fake = cls(folder)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", fake.list_repo_files)
        monkeypatch.chdir(folder)
        return fake

    def add(self, name: str, config: dict[str, Any], *files: str) -> None:
        for file in ("config.json", *files):
            path = self.remote / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config) if file == "config.json" else "")

    def fetched(self, name: str) -> set[str]:
        return {path.name for path in (self.cache / name).iterdir()} if (self.cache / name).is_dir() else set()

    def list_repo_files(self, name: str, *, revision: str | None = None) -> list[str]:
        if self.offline:
            raise hub.OfflineModeIsEnabled("offline")
        self.revisions.setdefault(name, set()).add(revision)
        return [str(path.relative_to(self.remote / name)) for path in (self.remote / name).rglob("*") if path.is_file()]

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        cache_dir: object,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        folder = self.cache / name
        if self.offline:
            if not folder.is_dir():
                raise hub.LocalEntryNotFoundError("not cached")
            return str(folder)
        if not (self.remote / name).is_dir():
            raise hub.RepositoryNotFoundError.__new__(hub.RepositoryNotFoundError)
        for file in self.list_repo_files(name, revision=revision):
            wanted = any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(file, pattern) for pattern in ignore_patterns):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.remote / name / file, folder / file)
        return str(folder)
