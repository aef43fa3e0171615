"""What keeps a server from starting."""


class StartError(Exception):
    """One plain line: what happened with what was found, and what to do next."""


def first_line(error: BaseException) -> str:
    """What it says first, for the middle of such a line."""
    return str(error).strip().partition("\n")[0].rstrip(".")
