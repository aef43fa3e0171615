"""Removes tokens, keys and passwords from the errors and responses that leave this package.

Exceptions travel: they are pickled from worker processes, and logged with the variables of each
frame. Those of ``requests`` contain the request, and their frames the header with the token.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import requests
from requests.cookies import cookiejar_from_dict

from .connection_errors import chain_of
from .passwords import without_passwords

_P = ParamSpec("_P")
_T = TypeVar("_T")

_NOT_SHOWN = "[not shown]"
_SECRET_HEADERS = ("Authorization", "Proxy-Authorization", "Cookie")


class Bearer(str):
    """A header with a token, which neither ``repr`` nor a pickle shows."""

    __slots__ = ()

    @property
    def token(self) -> str:
        return self.removeprefix("Bearer ")

    def __repr__(self) -> str:
        return repr(f"Bearer {_NOT_SHOWN}")

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (f"Bearer {_NOT_SHOWN}",)


def set_bearer(token: str, request: requests.PreparedRequest) -> None:
    """Set ``token`` on a request, beside its basic authentication if it has one."""
    taken = request.headers.get("Authorization", "").lower().startswith("basic ")
    request.headers["Proxy-Authorization" if taken else "Authorization"] = Bearer(f"Bearer {token}")


def pop_bearer(request: requests.PreparedRequest) -> str | None:
    """Remove the token that ``set_bearer`` set, and return it."""
    for name in _SECRET_HEADERS:
        value = request.headers.get(name)
        if isinstance(value, Bearer):
            del request.headers[name]
            return value.token
    return None


def without_secrets(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorator that removes secrets from the errors that a function raises."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            del args, kwargs  # variables of this frame
            remove_secrets(error)
            raise

    return call


def remove_secrets(error: BaseException, handled: BaseException | None = None) -> None:
    """Remove the secrets of an error, and of the errors that led to it.

    Args:
        error: an error on its way to the caller.
        handled: an error that the caller is handling; it and what led to it are left as they are.
    """
    seen = {id(each) for each in chain_of(handled)} if handled else set()
    for each in chain_of(error, seen):
        each.args = tuple(without_passwords(a) if isinstance(a, str) else a for a in each.args)
        for name in ("message", "_message"):
            text = getattr(each, name, None)
            if isinstance(text, str):
                setattr(each, name, without_passwords(text))
        response, request = getattr(each, "response", None), getattr(each, "request", None)
        if isinstance(response, requests.Response):
            clean_response(response)
        if isinstance(request, requests.PreparedRequest):
            each.request = _shown(request)  # type: ignore[attr-defined]
        traceback.clear_frames(each.__traceback__)


def clean_response(response: requests.Response) -> requests.Response:
    """Remove the secrets of the request from a response, which can then be pickled."""
    if response.request is not None:
        response.request = _shown(response.request)
    response.url = without_passwords(response.url or "")
    return response


def _shown(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return a copy of a request without secrets, which can be pickled."""
    copy = request.copy()
    for name in _SECRET_HEADERS:
        copy.headers.pop(name, None)
    copy.hooks = {"response": []}
    copy._cookies = cookiejar_from_dict({})  # type: ignore[attr-defined]
    copy.url = without_passwords(copy.url or "")
    if not isinstance(copy.body, (bytes, str)):
        copy.body = None
    return copy
