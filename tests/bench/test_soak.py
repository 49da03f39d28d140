"""What the soak holds against an answer."""

from bench.soak import Book, Choice, questions


def _answer(text: str = "yes", *, finish_reason: int = 1, num_logprobs: int = 0) -> list[Choice]:
    return [Choice([ord(letter) for letter in text], text, num_logprobs, finish_reason)]


def test_the_same_again_is_no_fault() -> None:
    book = Book()
    for number in (0, 1, 0):
        book.note(number, _answer(str(number)), logprobs=False)
    assert (book.counts["answers"], book.faults) == (3, [])


def test_another_answer_no_end_and_missing_log_probabilities_are() -> None:
    book = Book()
    book.note(0, _answer(), logprobs=False)
    book.note(0, _answer("no"), logprobs=False)
    assert book.faults == ["request 0: ['no'] and not ['yes'] as before"]
    book.note(1, _answer(finish_reason=0), logprobs=False)
    assert book.faults[1:] == ["request 1: choice 0 has no end"]
    book.note(2, _answer(num_logprobs=2), logprobs=True)
    assert book.faults[2:] == ["request 2: 2 log-probabilities of 3 tokens"]


def test_requests_are_the_same_at_each_start_and_of_many_kinds() -> None:
    asked = questions()
    assert asked == questions()
    assert any(request.sampling.temperature for request in asked)
    assert any(not request.sampling.temperature for request in asked)
    assert any(request.n > 1 for request in asked)
    assert any(request.logprobs and request.stopping.stop_strings for request in asked)
