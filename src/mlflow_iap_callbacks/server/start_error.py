"""What keeps a server from starting."""


class StartError(Exception):
    """One plain line: what happened with what was found, and what to do next."""
