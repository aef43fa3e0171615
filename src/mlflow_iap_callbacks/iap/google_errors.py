"""Converts google-auth's errors into one that says why there is no token, without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from google.auth import exceptions

from ..errors import IAPCredentialsError
from .connection_errors import is_certificate_invalid
from .retry_policy import BUSY

_P = ParamSpec("_P")
_T = TypeVar("_T")

# What google-auth and this package raise if a response or a file has an unexpected form.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
# Tokens that a response contains by mistake: they are long and of mixed case, or begin like this.
_SECRET = re.compile(
    r"(?:ya29\.|eyJ|1//)[\w.~+/=-]+|(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{30,}", re.ASCII
)


def with_google_errors(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorator that turns errors of Google's credentials into an IAPCredentialsError."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (exceptions.GoogleAuthError, OSError, *MALFORMED) as error:
            readable = _credentials_error(error)
        # Raised here, it has no context, which could contain a token and which Dask pickles.
        raise readable

    return call


def _credentials_error(error: BaseException) -> IAPCredentialsError:
    first = error.args[0] if error.args else None
    if isinstance(first, exceptions.TransportError):  # from the metadata server
        error = first
    reason = reason_of(error)
    if isinstance(error, exceptions.TransportError):
        # An error response of the metadata server is a second argument, such as its 404 on a
        # machine without a service account.
        is_unreachable = len(error.args) == 1
        is_untrusted = is_certificate_invalid(error)
        remedy = "REQUESTS_CA_BUNDLE" if is_untrusted else "the network and HTTPS_PROXY"
        return IAPCredentialsError(
            f"Google could not be reached: {reason}. Check {remedy} on this machine.",
            transient=is_unreachable and not is_untrusted,
        )
    return IAPCredentialsError(
        f"Google issued no token: {reason}. {_remedy(reason)}", transient=_is_transient(error)
    )


def _is_transient(error: BaseException) -> bool:
    if getattr(error, "retryable", False) or _is_web_page(error):
        return True
    detail = _response(error).get("error")
    return isinstance(detail, dict) and detail.get("code") in BUSY


def _remedy(reason: str) -> str:
    if "reasonable timeframe" in reason:
        return "This machine's clock is off: synchronize it (NTP), then try again."
    if "insufficient authentication scopes" in reason:
        return (
            "Sign in again, or set the access scopes of this machine, with "
            "https://www.googleapis.com/auth/cloud-platform."
        )
    if "iam.serviceAccounts" in reason or "PERMISSION_DENIED" in reason:
        return (
            "Grant the caller roles/iam.serviceAccountTokenCreator on that service account, or "
            "impersonate another one."
        )
    if "Signature" in reason or "account not found" in reason:
        return "The key was deleted or belongs to another account: create a new key file."
    if "expired or revoked" in reason or "reauth" in reason.lower():
        return "Sign in again: `gcloud auth application-default login`."
    return "Run `mlflow-iap doctor` to see which credentials are in use."


def reason_of(error: BaseException) -> str:
    """Google's own words, without the secrets that a malformed response may contain."""
    response = _response(error)
    detail = response.get("error")
    if isinstance(detail, dict):
        parts = [error.args[0], detail.get("message")]
    elif detail:
        parts = [detail, response.get("error_description")]
    elif _is_web_page(error):
        parts = ["the response was a web page"]
    elif isinstance(error, exceptions.GoogleAuthError):
        parts = list(error.args[:1])
    else:
        parts = [type(error).__name__, error]
    text = ": ".join(str(part) for part in parts if part)
    text = _SECRET.sub("[not shown]", text[:2000])
    return " ".join(text.split())[:400].rstrip(".: ")


def _response(error: BaseException) -> Mapping[str, Any]:
    """Google's JSON response, if google-auth attached it to the error."""
    for argument in error.args[1:]:
        try:
            response = argument if isinstance(argument, dict) else json.loads(argument)
        except (ValueError, TypeError):
            continue
        if isinstance(response, dict):
            return response
    return {}


def _is_web_page(error: BaseException) -> bool:
    """Whether a gateway or proxy responded: Google's token endpoints send JSON."""
    pages = (b"<html", b"<!doctype")
    texts = [a.encode(errors="replace") if isinstance(a, str) else a for a in error.args]
    return any(isinstance(t, bytes) and t.lstrip().lower().startswith(pages) for t in texts)
