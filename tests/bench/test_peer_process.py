"""The protocol between the benchmark and a peer's child, with a child that has no model."""

import os
import sys
from pathlib import Path

import pytest

from bench.errors import PeerError
from bench.peers.process import parse_reply, peer_process
from bench.prompts import Prompt

_FAKE = str(Path(__file__).with_name("fake_peer.py"))
_PROMPTS = [Prompt("a", "chat", "a"), Prompt("b", "chat", "b")]


def test_answers_of_prompts_together() -> None:
    with peer_process("fake", [sys.executable, _FAKE], dict(os.environ)) as peer:
        assert (peer.about.version, peer.about.dtype) == ("1", "none")
        first, second = peer.answer(_PROMPTS, [[1, 2], [7]], max_new_tokens=5)
        assert first.token_ids == (3, 4, 5, 6, 7)
        assert second.token_ids == (8, 9, 10, 11, 12)
        assert [a.num_tokens for a in first.arrivals] == [2, 2, 1]
        assert (first.prompt_id, first.num_steps) == ("a", 3)


def test_a_stopped_peer_answers_and_ends() -> None:
    with peer_process("fake", [sys.executable, _FAKE], dict(os.environ)) as peer:
        peer.is_stopped_between_turns = True
        for _ in range(2):
            assert len(peer.answer(_PROMPTS[:1], [[1]], max_new_tokens=2)) == 1


def test_a_peer_that_ends_is_named_with_its_message() -> None:
    with (
        peer_process("fake", [sys.executable, _FAKE, "--fail"], dict(os.environ)) as peer,
        pytest.raises(PeerError, match=r"fake: its process ended \(1\): the fake peer fails"),
    ):
        peer.answer(_PROMPTS[:1], [[1]], max_new_tokens=2)


def test_a_peer_that_cannot_start_is_named() -> None:
    with pytest.raises(PeerError, match="nothing"), peer_process("fake", [sys.executable, "nothing"], dict(os.environ)):
        pass


def test_a_miscount_is_refused() -> None:
    answer = {"token_ids": [1, 2], "times_s": [0.1], "counts": [3], "steps": 1}
    with pytest.raises(PeerError, match="3 tokens arrived, the answer has 2"):
        parse_reply("fake", {"answers": [answer]}, _PROMPTS[:1])
    with pytest.raises(PeerError, match="2 prompts, but 0 answers"):
        parse_reply("fake", {"answers": []}, _PROMPTS)
