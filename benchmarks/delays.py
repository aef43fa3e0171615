"""The delays that a proxy adds to each request, in seconds."""

from __future__ import annotations

DELAYS = (0.0, 0.06, 0.25)
HEADLINE_DELAY = 0.06  # shown in the documentation
DOWN = -1.0  # in place of a delay: the server is unavailable during training


def delay_label(delay: float) -> str:
    return "down" if delay == DOWN else f"{delay * 1000:.0f} ms"
