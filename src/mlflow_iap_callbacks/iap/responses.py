"""Turns responses that IAP or Google's front end sends in place of MLflow into errors."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import requests

from ..errors import IAPRefusedError, IAPUnavailableError, Reason

_MARK = "X-Goog-IAP-Generated-Response"
_SIGN_IN = ("https://accounts.google.com/", "https://auth.cloud.google/")
_TOLERATED_SKEW = 60.0  # seconds

_ALLOWLIST = (
    "Add it to IAP's allowlist: `gcloud iap settings set FILE --project=PROJECT` with "
    "accessSettings.oauthSettings.programmaticClients, or impersonate a service account "
    "(MLFLOW_IAP_IMPERSONATE)."
)
_NO_TOKEN = "empty token"  # noqa: S105 - IAP's words
_EXPIRED = "expired"
# By a part of IAP's message, as observed in 2026: reason, meaning and remedy. The first part that
# occurs in the message applies.
_MEANINGS: dict[str, tuple[Reason, str, str]] = {
    "Access denied": (
        "role",
        "{account} is known to IAP but may not use this server",
        "Grant it the role: `gcloud iap web add-iam-policy-binding --member={member} "
        "--role=roles/iap.httpsResourceAccessor` (with --resource-type=app-engine for App Engine), "
        "which takes effect after a few minutes.",
    ),
    "JWT audience": (
        "audience",
        "the ID token was issued for an OAuth client that IAP does not accept",
        "If IAP uses a Google-managed client, unset MLFLOW_IAP_CLIENT_ID to use a signed JWT; "
        "otherwise set it to the id of IAP's OAuth client.",
    ),
    "Audience specified does not match": (
        "audience",
        "the signed JWT was issued for another host or path",
        "Omit the audience, so that the JWT is issued for {origin}/*, and use the host name that "
        "IAP serves in the tracking URI.",
    ),
    "'email' claim": (
        "account",
        "the token contains no email address",
        "Use a service account (MLFLOW_IAP_IMPERSONATE), whose tokens contain one.",
    ),
    _EXPIRED: (
        "token",
        "a token that was fetched for this request has expired",
        "If other requests succeed, something between this machine and IAP delays this one for too "
        "long; otherwise create new credentials.",
    ),
    "Error code 900": (
        "allowlist",
        "the OAuth client that the user signed in with is not on IAP's allowlist",
        _ALLOWLIST,
    ),
    _NO_TOKEN: (
        "token",
        "IAP received no token",
        "Check for a proxy between this machine and IAP that strips the Authorization header.",
    ),
    "JWT signature is invalid": (
        "account",
        "Google does not know the key with which the token was signed",
        "The key or its account was deleted: create a new key file, or use another account.",
    ),
    "Unable to parse JWT": (
        "token",
        "IAP cannot read the token that it received",
        "Check for a proxy between this machine and IAP that changes the Authorization header. An "
        "access token needs the scopes openid and userinfo.email.",
    ),
    "Empty Google Account OAuth client": (
        "setup",
        "IAP has no OAuth client, so nobody can sign in",
        "Configure one for the project (a project without an organization has no Google-managed "
        "client).",
    ),
}
_OTHER: tuple[Reason, str, str] = (
    "setup",
    "IAP could not handle the request",
    "Look up the code at https://cloud.google.com/iap/docs/faq#error_codes.",
)


def is_from_iap(response: requests.Response) -> bool:
    """Whether IAP itself sent this response, so that MLflow has not received the request.

    IAP marks its responses. A 401 is also recognized by its text, and a 302 by its target.
    """
    if response.headers.get(_MARK, "").lower() == "true":
        return True
    if response.is_redirect:
        return response.headers.get("Location", "").startswith(_SIGN_IN)
    if response.status_code == 401 and "html" in response.headers.get("Content-Type", ""):
        return response.text.startswith(("Invalid IAP credentials", "OpenID Connect token expired"))
    return False


def is_token_expired(response: requests.Response) -> bool:
    return response.status_code == 401 and _EXPIRED in response.text


def unavailable_error(response: requests.Response, origin: str) -> IAPUnavailableError | None:
    """Return the error for a response that Google's front end or a proxy sent in place of MLflow.

    None if the response is from MLflow itself, which reports errors as JSON.
    """
    is_page = "html" in response.headers.get("Content-Type", "")
    if response.status_code not in (502, 503, 504) or not is_page:
        return None
    return IAPUnavailableError(
        f"{origin} answered {response.status_code} ({response.reason}) in place of MLflow: no "
        "instance of the server could be reached. It may be restarting, so try again in a minute; "
        "then check its log (`gcloud app logs read`)."
    )


def refused_error(response: requests.Response, origin: str, used: str) -> IAPRefusedError:
    """Return the error that explains IAP's response to a request with the credentials ``used``."""
    answer = " ".join(response.text.split())[:300]
    found = next((part for part in _MEANINGS if part in answer), "")
    if response.is_redirect:
        found = _NO_TOKEN
    reason, meaning, remedy = _MEANINGS.get(found, _OTHER)
    skew = _clock_skew(response)
    if found == _EXPIRED and abs(skew) > _TOLERATED_SKEW:
        reason = "clock"
        meaning = f"this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
        remedy = "Synchronize it (NTP), then try again."
    if reason == "audience" and "desktop" in used and "impersonated" not in used:
        reason, remedy = "allowlist", _ALLOWLIST
    user = re.search(r"For user (\S+@\S+?)\.?$", answer)
    account = user[1] if user else "the account"
    kind = "serviceAccount" if account.endswith("gserviceaccount.com") else "user"
    names = {"account": account, "member": f"{kind}:{account}", "origin": origin}
    return IAPRefusedError(
        f"IAP at {origin} rejected the request ({response.status_code}: {answer!r}): "
        f"{meaning.format(**names)}. Credentials used: {used}. {remedy.format(**names)}",
        reason=reason,
        status=response.status_code,
        answer=answer,
    )


def _clock_skew(response: requests.Response) -> float:
    try:
        return time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0
