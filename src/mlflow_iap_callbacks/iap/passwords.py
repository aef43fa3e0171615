"""Passwords in URIs and credentials in settings, which messages must not show."""

from __future__ import annotations

import re

# The user of `//user:password@host`; a password may contain characters invalid in a URI.
_USER = re.compile(r"(?<=://)(?:[^/\s?#]+|[^/\s@:]*:(?!\d+(?:[/?#\s]|$))[^\s@]*)@")
# Begins a query parameter that holds a secret.
HIDDEN_PARAMETER = r"(?i:\w*password|passwd|pwd|\w*token|\w*secret)="
_PARAMETER = re.compile(rf"(?<=[?&])({HIDDEN_PARAMETER})[^&\s'\"<>)]*")

_LONGEST = 300  # characters, of a setting that a message shows
# JSON, a PEM key, or one of Google's tokens and secrets.
_CONTENTS = re.compile(r"[{}\"\n]|PRIVATE KEY|^\s*(?:ya29\.|eyJ|ew|1//|GOCSPX-)\S{20}")


def without_passwords(text: str) -> str:
    """Return a text with users, passwords and tokens left out of each URI."""
    return _PARAMETER.sub(r"\1***", _USER.sub("", text))


def holds_contents(value: str) -> bool:
    """Whether a setting holds credentials themselves, where a path, name or URL is expected."""
    return len(value) > _LONGEST or _CONTENTS.search(value) is not None


def shown(value: str) -> str:
    """Return a setting as messages show it: in quotes, without passwords and credentials."""
    if holds_contents(value):
        return f"[{len(value)} characters, not shown]"
    return repr(without_passwords(value))
