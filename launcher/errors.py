"""The one error of the launcher that is for its user: nothing can be started, and the message says why."""


class LaunchError(Exception):
    """Cannot start. The message names what is wrong and what to do; the launcher prints it and exits 1."""
