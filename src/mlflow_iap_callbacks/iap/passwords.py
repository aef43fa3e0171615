"""Passwords in URIs, which nobody but the server needs to see."""

from __future__ import annotations

import re

# The user of `//user:password@host`; a password may contain characters invalid in a URI.
_USER = re.compile(r"(?<=://)(?:[^/\s?#]+|[^/\s@:]*:(?!\d+(?:[/?#\s]|$))[^\s@]*)@")
# Begins a query parameter that holds a secret.
HIDDEN_PARAMETER = r"(?i:\w*password|passwd|pwd|\w*token|\w*secret)="
_PARAMETER = re.compile(rf"(?<=[?&])({HIDDEN_PARAMETER})[^&\s'\"<>)]*")


def without_passwords(text: str) -> str:
    """Return a text with users, passwords and tokens left out of each URI."""
    return _PARAMETER.sub(r"\1***", _USER.sub("", text))


def hide_passwords(error: BaseException) -> None:
    """Remove the passwords in URIs from an error, and from the errors that led to it."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        inner.args = tuple(
            without_passwords(each) if isinstance(each, str) else each for each in inner.args
        )
        if isinstance(getattr(inner, "message", None), str):
            inner.message = without_passwords(inner.message)  # type: ignore[attr-defined]
        inner = inner.__cause__ or inner.__context__
