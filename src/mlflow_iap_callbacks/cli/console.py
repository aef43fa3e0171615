"""The console that the commands print to."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

console = Console(highlight=False)
# Text in backquotes, and what separates it from the rest of its sentence.
_QUOTED = re.compile(r"\s*`([^`]+)`[.,;:)]*\s*")
_INDENT = 18  # columns, of the values


def print_line(text: str) -> None:
    """Print a text unchanged and without line breaks, no matter how long it is."""
    console.print(text, markup=False, soft_wrap=True)


def print_rows(rows: Mapping[str, str], mark: str = "  ") -> None:
    """Print each name and its value after ``mark``; values may have several lines.

    Lines are never folded, so that paths and commands can be copied.
    """
    for name, value in rows.items():
        first, *others = value.splitlines() or [""]
        console.print(f" {mark}  [bold]{name:<11}[/]  {escape(first)}", soft_wrap=True)
        for line in others:
            console.print(" " * _INDENT + escape(line), soft_wrap=True)


def with_commands_apart(text: str) -> str:
    """Return a text with each of its commands on a line of its own, without quotes."""

    def apart(found: re.Match[str]) -> str:
        return f"\n    {found[1]}\n" if " " in found[1] else found[0]  # one word is a name

    return _QUOTED.sub(apart, text).strip()
