"""Text of a growing list of tokens, piece by piece: the same text as decoding the whole list at once.

Owns what is held back (an incomplete character, a possible beginning of a stop string) and where a stop string ends
the text. Knows nothing of sequences, budgets or streams.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from router.tokenizer import Tokenizer, TokenKind

# What a decoder writes for bytes that are no character, or not yet one.
_REPLACEMENT = "�"
# An incomplete UTF-8 character has at most three bytes and a token at least one, so four tokens always reach back
# to a place where the text before no longer matters; one would do for tokenizers that join words with spaces.
_KEPT_TOKENS = 4
_MAX_WINDOW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Detokenized:
    """`num_tokens` of the pushed tokens are kept: all of them, or through the one that completed a stop string."""

    text: str
    num_tokens: int


class Detokenizer:
    """Decodes one sequence. The prompt gives context only: whether a space or half a character stands before.

    The text is what decoding prompt and tokens together has beyond its longest common beginning with the decoded
    prompt, without special tokens. Of several stop strings the one that is complete first ends the text; of those
    complete at the same character, the longest: it `has_stopped` then. Time is linear in the number of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop_strings: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._stop_ends = {f"<0x{stop.encode()[-1]:02X}>" for stop in self._stop_strings}
        self.has_stopped = False
        # The last tokens that have text, and the beginning of their text that needs no more saying.
        self._window = _context(tokenizer, prompt_token_ids)
        self._window_said = tokenizer.decode(self._window)
        # Certain text that may be the beginning of a stop string.
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> Detokenized:
        """The text that became certain with these tokens. Nothing may be pushed after a stop."""
        assert not self.has_stopped, "pushed after the stop string"
        if not self._stop_strings:
            return Detokenized(self._decode(token_ids), len(token_ids))
        pieces = []
        for i, token_id in enumerate(token_ids):
            text = self._decode((token_id,))
            if not text and self._ends_a_stop_string():
                text = self._unsaid(self._tokenizer.decode(self._window))
            pieces.append(self._release(text))
            if self.has_stopped:
                return Detokenized("".join(pieces), i + 1)
        return Detokenized("".join(pieces), len(token_ids))

    def flush(self) -> str:
        """The rest, when no more tokens come; empty after a stop."""
        if self.has_stopped:
            return ""
        text = self._release(self._unsaid(self._tokenizer.decode(self._window)))
        if self.has_stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _decode(self, token_ids: Sequence[int]) -> str:
        kinds = [self._tokenizer.kind(token_id) for token_id in token_ids]
        self._window += [t for t, kind in zip(token_ids, kinds, strict=True) if kind is not TokenKind.SILENT]
        # A run of byte tokens becomes text as a whole, so it waits for its end.
        if not self._window or self._tokenizer.kind(self._window[-1]) is TokenKind.BYTE:
            return ""
        certain = _without_last_replacement(self._tokenizer.decode(self._window))
        text = self._unsaid(certain)
        if len(certain) > len(self._window_said) or text:
            self._window_said = certain
        if len(self._window) > _MAX_WINDOW_TOKENS:
            self._window = self._window[-_KEPT_TOKENS:]
            self._window_said = _without_last_replacement(self._tokenizer.decode(self._window))
        return text

    def _ends_a_stop_string(self) -> bool:
        """Whether a run of bytes, of which nothing is said until it ends, completes one: then it ends here."""
        last = self._tokenizer.token(self._window[-1]) if self._window else ""
        if last not in self._stop_ends or self._tokenizer.kind(self._window[-1]) is not TokenKind.BYTE:
            return False
        text = self._held + self._unsaid(self._tokenizer.decode(self._window))
        return any(stop in text for stop in self._stop_strings)

    def _unsaid(self, text: str) -> str:
        if text.startswith(self._window_said):
            return text[len(self._window_said) :]
        pairs = zip(text, self._window_said, strict=False)
        return text[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]

    def _release(self, text: str) -> str:
        """Adds text to what is held and returns what no stop string can claim any more."""
        text = self._held + text
        matches = [(start + len(stop), start) for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if matches:
            self.has_stopped, self._held = True, ""
            return text[: min(matches)[1]]
        start = min((_partial_match(text, stop) for stop in self._stop_strings), default=len(text))
        self._held = text[start:]
        return text[:start]


def _context(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """The last tokens with text, back to the beginning of a byte run."""
    context: list[int] = []
    for token_id in reversed(token_ids):
        kind = tokenizer.kind(token_id)
        if kind is TokenKind.SILENT:
            continue
        context.append(token_id)
        if len(context) >= _KEPT_TOKENS and kind is not TokenKind.BYTE:
            break
    return context[::-1]


def _without_last_replacement(text: str) -> str:
    # Only the last one can still become a character: those before it are cut off from what follows.
    return text[:-1] if text.endswith(_REPLACEMENT) else text


def _partial_match(text: str, stop: str) -> int:
    """Where the longest end of `text` that begins `stop` begins; len(text) if there is none."""
    start = max(0, len(text) - len(stop) + 1)
    while not stop.startswith(text[start:]):
        start += 1
    return start
