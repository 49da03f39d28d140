"""The one error of the trainer that is for its user."""


class TrainError(Exception):
    """Cannot go on. The message names what is wrong and what to do; the command prints it and exits 1."""
