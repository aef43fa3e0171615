"""The error that keeps a server from starting."""

from click import ClickException


class StartError(ClickException):
    """The server cannot start. The message is one line: what is wrong, and what to do next."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for use in the message of a StartError."""
    return str(error).strip().partition("\n")[0].rstrip(".")
