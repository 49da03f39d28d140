"""The one error of the trainer that is for its user, and how those of libraries are told in it."""


class TrainError(Exception):
    """Cannot go on. The message names what is wrong and what to do; the command prints it and exits 1."""


def described(error: Exception) -> str:
    """With its class, because some say nothing but a name."""
    return f"{type(error).__name__}: {error}".strip(": ")
