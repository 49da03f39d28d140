"""What is read from the service's /metrics."""

from bench.metrics import parse_drafts, parse_held

_TEXT = """
# TYPE drafthouse_speculation_drafted_tokens_total counter
drafthouse_speculation_drafted_tokens_total{method="ngram",position="1"} 10.0
drafthouse_speculation_drafted_tokens_total{method="ngram",position="2"} 4.0
drafthouse_speculation_drafted_tokens_total{method="medusa",position="1"} 0.0
# TYPE drafthouse_speculation_accepted_tokens_total counter
drafthouse_speculation_accepted_tokens_total{method="ngram",position="1"} 5.0
drafthouse_speculation_accepted_tokens_total{method="ngram",position="2"} 0.0
"""


def test_drafts_by_method_and_position() -> None:
    assert parse_drafts(_TEXT) == {("ngram", 1): (10, 5), ("ngram", 2): (4, 0)}


def test_what_is_held() -> None:
    text = """
# TYPE drafthouse_sequences gauge
drafthouse_sequences{state="waiting"} 0.0
drafthouse_sequences{state="running"} 3.0
# TYPE drafthouse_kv_blocks gauge
drafthouse_kv_blocks{state="free"} 30.0
drafthouse_kv_blocks{state="used"} 7.0
"""
    assert parse_held(text) == ["3 running sequences", "7 used kv blocks"]
