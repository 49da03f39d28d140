"""Environments and models of peers: where they lie, and what is said when they cannot be made."""

import dataclasses
import sys
from pathlib import Path

import pytest

from bench.errors import PeerError
from bench.peers.catalogue import LLAMA_CPP, PEERS, TRANSFORMERS, Peer
from bench.peers.environment import environment_folder, install, is_installed, python_of
from bench.peers.model import prepared_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_an_environment_is_named_by_its_requirements(cache: Path) -> None:
    folder = environment_folder(LLAMA_CPP)
    assert folder.parent == cache / "drafthouse" / "bench"
    assert folder.name.startswith("llama-cpp-python-")
    assert environment_folder(dataclasses.replace(LLAMA_CPP, pip=(("install", "other"),))) != folder
    assert environment_folder(dataclasses.replace(LLAMA_CPP, pip_environ={"A": "1"})) != folder


def test_a_peer_without_requirements_runs_in_the_projects_own() -> None:
    assert is_installed(TRANSFORMERS)
    assert python_of(TRANSFORMERS) == Path(sys.executable)


def test_a_failed_installation_names_the_peer_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Collecting all\necho 'ERROR: no network'\necho more\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    peer = Peer("odd", Path("odd.py"), pip=(("install", "odd"),))
    with pytest.raises(PeerError, match=r"odd: `-m venv .*` failed: ERROR: no network; .*install\.log"):
        install(peer)
    assert capsys.readouterr().err.endswith("\nodd: Collecting all\n")
    assert not is_installed(peer)


def test_every_peer_has_its_script() -> None:
    for peer in PEERS.values():
        assert peer.script.is_file()
        # An open range of torch's versions draws gigabytes.
        assert all(
            "torch==" in word for words in peer.pip for word in words if word.startswith("torch") and "=" in word
        )


def test_a_peer_that_reads_gguf_says_so_without_one(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="reads GGUF only"):
        prepared_model(LLAMA_CPP, folder=tmp_path, gguf=None, quantize=None, threads=1)


def test_a_peer_without_weights_in_8_bits_says_so(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="not measured with weights in int8"):
        prepared_model(TRANSFORMERS, folder=tmp_path, gguf=None, quantize="int8", threads=1)


def test_a_model_is_converted_once_for_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "child.py"
    script.write_text("import pathlib, sys\npathlib.Path(sys.argv[2].removeprefix('--prepare=')).mkdir()\n")
    model = tmp_path / "model"
    model.mkdir()
    peer = Peer("odd", script, converts=True, has_int8=True)
    first = prepared_model(peer, folder=model, gguf=None, quantize=None, threads=1)
    assert first.is_dir()
    assert prepared_model(peer, folder=model, gguf=None, quantize=None, threads=1) == first
    assert capsys.readouterr().err.count("converting the model") == 1
    assert prepared_model(peer, folder=model, gguf=None, quantize="int8", threads=1) != first


def test_a_failed_conversion_names_the_peer(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("raise SystemExit('no such layer')\n")
    with pytest.raises(PeerError, match="odd: the model cannot be converted: no such layer"):
        prepared_model(Peer("odd", script, converts=True), folder=tmp_path, gguf=None, quantize=None, threads=1)
