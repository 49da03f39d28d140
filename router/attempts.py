"""When somebody is asked for drafts: while it pays, else now and then. Pure; must not know what pays."""

# Proposals that a sequence, or the heads, may make before their outcome counts; half of them after an unexpected
# success.
_TRIAL = 3
# A trial is shorter where asking takes more than this part of a step.
_TRIAL_COST = 0.1
# Steps are counted, and a trial goes on at every so many of them: those of all sequences meet, because most of what
# asking costs is the same for one and for many. Who was not asked rests until then, and who was asked because it pays
# is, as long as there is no news of it: prices change slowly, and weighing them at every step costs what it could save.
REVIEW_EVERY = 8
# Where asking did not pay the next try is at a multiple of so many steps, first and at last; the last is more where
# tries would otherwise take more than this part of the time.
_FIRST_EVERY, _LAST_EVERY, _TRIES_COST = 16, 64, 0.002


class Attempts:
    """Of one sequence, or of the heads."""

    __slots__ = ("_every", "_goes_on_until", "_pays", "_rests_until", "_trial")

    def __init__(self) -> None:
        self._pays = True
        self._trial = float(_TRIAL)
        self._every = _FIRST_EVERY
        self._rests_until = self._goes_on_until = 0

    def rests(self, step: int) -> bool:
        """Whether nobody is asked in this step, whatever would pay."""
        return step < self._rests_until

    def goes_on(self, step: int) -> bool:
        """Whether it is asked in this step without being weighed."""
        return step < self._goes_on_until

    def is_due(self, step: int, pays: bool, cost: float) -> bool:
        """Asked at each step that is not rested in, by its number; `cost` is what asking takes, in steps."""
        self._pays = pays
        if pays:
            self._every = _FIRST_EVERY
            self._goes_on_until = _next_review(step)
        if pays or (self._trial > 0 and step % REVIEW_EVERY == 0):
            self._trial = max(0.0, self._trial - max(1.0, cost / _TRIAL_COST))
            return True
        if self._trial > 0 or step % self._every:
            self._rests_until = _next_review(step)
            return False
        if self._every < max(_LAST_EVERY, cost / _TRIES_COST):
            self._every *= 2
        return True

    def note_news(self) -> None:
        """What is known of it changed, or what it is weighed against."""
        self._goes_on_until = 0

    def note_success(self) -> None:
        """A try that was not expected to pay brought tokens, so it is worth some more."""
        self._rests_until = 0
        if not self._pays:
            self._trial = max(self._trial, _TRIAL / 2)


def _next_review(step: int) -> int:
    return step - step % REVIEW_EVERY + REVIEW_EVERY
