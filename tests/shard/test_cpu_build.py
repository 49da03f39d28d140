"""The library of compiled kernels: where it is kept, when it is made anew, and what is said if it cannot be."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from shard.cpu import build
from shard.cpu.kernels import cpu_kernels


def test_without_a_compiler_the_service_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert cpu_kernels.__wrapped__() is None
    assert "no C compiler 'no-such-compiler'" in caplog.text


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_flags", lambda: ("--no-such-flag",))
    with pytest.raises(build.BuildError, match="cc failed"):
        build.built_library()
    assert not list(tmp_path.rglob("*.so"))


def test_what_a_compiler_says_is_passed_on_and_it_may_have_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "cc -nostdinc")
    with pytest.raises(build.BuildError, match=r"cc failed: .*error: .*\.h"):
        build.built_library()


def test_a_damaged_library_is_made_anew_and_what_a_killed_build_left_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "drafthouse" / "kernels-tmp1").mkdir(parents=True)
    library = build.built_library()
    assert [path.name for path in library.parent.iterdir() if path.is_dir()] == []
    library.write_bytes(b"")
    assert cpu_kernels.__wrapped__() is not None
    assert library.stat().st_size > 0


def test_where_the_cache_cannot_be_written_the_library_is_made_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Root may write to any folder, so one is to be made below a file.
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    made = build.built_library()
    assert made.parent.parent == tmp_path
    assert made.parent.stat().st_mode & 0o777 == 0o700
    assert build.loaded_library()
    # One that is in a cache that can only be read is used as it is.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "read_only"))
    cache = tmp_path / "read_only" / "drafthouse"
    cache.mkdir(parents=True)
    kept = made.rename(cache / made.name)
    monkeypatch.setattr(build, "_is_usable", lambda folder: False)
    assert build.built_library() == kept


def test_where_nothing_can_be_run_from_nothing_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(build.os, "statvfs", lambda folder: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(build.BuildError, match=r"nothing can be run from .* set XDG_CACHE_HOME"):
        build.built_library()


def test_what_others_can_write_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"drafthouse-{os.getuid()}").mkdir()
    (tmp_path / f"drafthouse-{os.getuid()}").chmod(0o777)
    with pytest.raises(build.BuildError, match="not this user's alone"):
        build.built_library()


def test_every_source_is_compiled() -> None:
    folder = Path(build.__file__).parent
    assert {*build.SOURCES, *build.HEADERS} == {path for path in folder.iterdir() if path.suffix in (".c", ".h")}
    assert {source.name for source in build.SOURCES} >= {"attention.c", "decoder.c", "kernels.c", "linear.c"}


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str]:
    """Of the library as it would be built now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_build", lambda compiler, flags, library: library.touch())
    return lambda: build.built_library().name


@pytest.mark.parametrize("which", ["SOURCES", "HEADERS"])
def test_a_changed_file_is_another_library(
    which: str, name: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    monkeypatch.setattr(build, which, (*getattr(build, which), file))
    before = name()
    assert name() == before
    file.write_text("other")
    assert name() != before


def test_other_flags_are_another_library(name: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    before, flags = name(), build._flags()
    monkeypatch.setattr(build, "_flags", lambda: (*flags, "-O2"))
    assert name() != before


def test_another_processor_has_another_library(name: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags, before = build._flags(), name()
    monkeypatch.setattr(build, "_processor", lambda: "flags : sse")
    monkeypatch.setattr(build, "_flags", lambda: flags)
    assert name() != before


def test_another_compiler_has_another_library(name: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = name()
    monkeypatch.setattr(build, "_run", lambda command: "cc (of next year) 99.1")
    assert name() != before
