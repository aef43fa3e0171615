"""Why Google gave no token: its many ways to fail, in words that say what to do and no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import requests
from google.auth import exceptions

from ..errors import IAPCredentialsError

_P = ParamSpec("_P")
_T = TypeVar("_T")

BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses behind which asking again may help
# How google-auth, and this module, stumble over an answer or a file that is not as agreed.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
# Whatever an answer carries by mistake: tokens are long and of mixed case, or begin like this.
_SECRET = re.compile(
    r"(?:ya29\.|eyJ|1//)[\w.~+/=-]+|(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{30,}", re.ASCII
)


def with_google_errors(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let what goes wrong with Google's credentials be raised as an IAPCredentialsError."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (exceptions.GoogleAuthError, OSError, *MALFORMED) as error:
            told = _in_words(error)
        # Out here it has no context: that may hold a token, and Dask pickles it with the error.
        raise told

    return call


def _in_words(error: BaseException) -> IAPCredentialsError:
    first = error.args[0] if error.args else None
    if isinstance(first, exceptions.TransportError):  # of the metadata server
        error = first
    reason = reason_of(error)
    if isinstance(error, exceptions.TransportError):
        # The metadata server's refusal comes with its answer; so would a 404 without an account.
        is_away = len(error.args) == 1
        is_tls = isinstance(error.__cause__, requests.exceptions.SSLError)
        remedy = "REQUESTS_CA_BUNDLE" if is_tls else "the network and HTTPS_PROXY"
        return IAPCredentialsError(
            f"Google could not be reached: {reason}. Check {remedy} of this machine.",
            transient=is_away and not is_tls,
        )
    return IAPCredentialsError(
        f"Google gave no token: {reason}. {_remedy(reason)}", transient=_may_pass(error)
    )


def _may_pass(error: BaseException) -> bool:
    if getattr(error, "retryable", False) or _is_web_page(error):
        return True
    detail = _answer(error).get("error")
    return isinstance(detail, dict) and detail.get("code") in BUSY


def _remedy(reason: str) -> str:
    if "reasonable timeframe" in reason:
        return "This machine's clock is off: set it (NTP), then try again."
    if "insufficient authentication scopes" in reason:
        return (
            "Sign in again, or set the access scopes of this machine, with "
            "https://www.googleapis.com/auth/cloud-platform."
        )
    if "iam.serviceAccounts" in reason or "PERMISSION_DENIED" in reason:
        return (
            "Grant the caller roles/iam.serviceAccountTokenCreator on that service account, or "
            "impersonate another."
        )
    if "Signature" in reason or "account not found" in reason:
        return "The key was deleted or is another account's: create a new key file."
    if "expired or revoked" in reason or "reauth" in reason.lower():
        return "Sign in again: `gcloud auth application-default login`."
    return "Run `mlflow-iap doctor` to see which credentials are in use."


def reason_of(error: BaseException) -> str:
    """Google's own words, without what a malformed answer may carry besides."""
    answer = _answer(error)
    detail = answer.get("error")
    if isinstance(detail, dict):
        said = [error.args[0], detail.get("message")]
    elif detail:
        said = [detail, answer.get("error_description")]
    elif _is_web_page(error):
        said = ["a web page came instead of an answer"]
    elif isinstance(error, exceptions.GoogleAuthError):
        said = list(error.args[:1])
    else:
        said = [type(error).__name__, error]
    text = ": ".join(str(each) for each in said if each)
    text = _SECRET.sub("[not shown]", text[:2000])
    return " ".join(text.split())[:400].rstrip(".: ")


def _answer(error: BaseException) -> Mapping[str, Any]:
    """What Google answered with, where google-auth has handed it on."""
    for argument in error.args[1:]:
        try:
            answer = argument if isinstance(argument, dict) else json.loads(argument)
        except (ValueError, TypeError):
            continue
        if isinstance(answer, dict):
            return answer
    return {}


def _is_web_page(error: BaseException) -> bool:
    """A gateway's answer, or a proxy's: Google's token endpoints give JSON."""
    texts = [
        each.decode(errors="replace") if isinstance(each, bytes) else each for each in error.args
    ]
    return any(
        isinstance(t, str) and t.lstrip()[:9].lower().startswith(("<html", "<!doctype"))
        for t in texts
    )
