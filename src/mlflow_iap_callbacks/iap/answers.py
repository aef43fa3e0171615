"""What the answers of IAP and of Google's front end mean: told from MLflow's, and put into words
that say what to do."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import requests

from ..errors import IAPRefusedError, IAPUnavailableError, Reason

_MARK = "X-Goog-IAP-Generated-Response"
_SIGN_IN = "https://accounts.google.com/o/oauth2/"
_TOLERATED_SKEW = 60.0

_ALLOWLIST = (
    "Put it on IAP's allowlist: `gcloud iap settings set FILE --project=PROJECT` with "
    "accessSettings.oauthSettings.programmaticClients, or impersonate a service account "
    "(MLFLOW_IAP_IMPERSONATE)."
)


class _Meaning(NamedTuple):
    says: str
    reason: Reason
    means: str
    remedy: str


# The sentences are IAP's, as measured in 2026; the first that is found in the answer holds.
_MEANINGS = [
    _Meaning(
        "Access denied",
        "role",
        "{account} is known to IAP and may not use this server",
        "Grant it the role: `gcloud iap web add-iam-policy-binding --member={member} "
        "--role=roles/iap.httpsResourceAccessor` (with --resource-type=app-engine for App Engine); "
        "that takes a few minutes to hold.",
    ),
    _Meaning(
        "Invalid JWT audience",
        "audience",
        "the OAuth client that the ID token is for is none of IAP's",
        "With a Google-managed client unset MLFLOW_IAP_CLIENT_ID, so that a signed JWT is used; "
        "with your own set it to that client's id.",
    ),
    _Meaning(
        "JWT audience doesn't match",
        "audience",
        "the OAuth client that the ID token is for is none of IAP's",
        "Set MLFLOW_IAP_CLIENT_ID to IAP's OAuth client id, or unset it to use a signed JWT.",
    ),
    _Meaning(
        "Audience specified does not match",
        "audience",
        "the signed JWT is for another host or path",
        "Leave audience out, so that it is made for {origin}/*, and use the very host name that "
        "IAP serves as tracking URI.",
    ),
    _Meaning(
        "'email' claim",
        "account",
        "the token names no e-mail address",
        "Use a service account (MLFLOW_IAP_IMPERSONATE), whose tokens carry one.",
    ),
    _Meaning(
        "expired",
        "token",
        "a token that was fetched for this request counts as expired",
        "If other requests pass, something between here and IAP holds them for too long; else "
        "create new credentials.",
    ),
    _Meaning(
        "Error code 900",
        "allowlist",
        "the OAuth client that the user signed in with is not on IAP's allowlist",
        _ALLOWLIST,
    ),
    _Meaning(
        "empty token",
        "token",
        "no token arrived",
        "Look for a proxy between here and IAP that strips the Authorization header.",
    ),
    _Meaning(
        "JWT signature is invalid",
        "account",
        "the key that signed the token is unknown to Google",
        "The key or its account was deleted: create a new key file, or use another account.",
    ),
    _Meaning(
        "Unable to parse JWT",
        "token",
        "what arrived as token is none that IAP reads",
        "Look for a proxy between here and IAP that changes the Authorization header; an access "
        "token needs the scopes openid and userinfo.email.",
    ),
    _Meaning(
        "Empty Google Account OAuth client",
        "setup",
        "IAP has no OAuth client, so it lets nobody in",
        "Configure one for the project (a project outside of an organization has no Google-managed "
        "client).",
    ),
]
_OTHER = _Meaning(
    "",
    "setup",
    "IAP could not handle the request",
    "Look the code up at https://cloud.google.com/iap/docs/faq#error_codes.",
)


def is_from_iap(response: requests.Response) -> bool:
    """Whether IAP itself gave this answer, so that MLflow has not seen the request.

    IAP marks its answers; its 401 is known by its words too, and its 302 by where it leads.
    """
    if response.headers.get(_MARK, "").lower() == "true":
        return True
    if response.status_code == 302:
        return response.headers.get("Location", "").startswith(_SIGN_IN)
    if response.status_code == 401 and "html" in response.headers.get("Content-Type", ""):
        return response.text.startswith(("Invalid IAP credentials", "OpenID Connect token expired"))
    return False


def is_token_rejected(response: requests.Response) -> bool:
    """Whether another token may pass where this one did not."""
    return response.status_code in (302, 401)


def is_token_expired(response: requests.Response) -> bool:
    return response.status_code == 401 and "expired" in response.text


def unavailable_error(response: requests.Response, origin: str) -> IAPUnavailableError | None:
    """The error that tells that Google's front end, or a proxy behind it, answered for a server
    that did not; None for MLflow itself, which says in JSON that it is busy.

    Args:
        response: that is not IAP's.
        origin: the server, ``https://HOST``.
    """
    is_page = "html" in response.headers.get("Content-Type", "")
    if response.status_code not in (502, 503, 504) or not is_page:
        return None
    return IAPUnavailableError(
        f"{origin} answered {response.status_code} ({response.reason}) in MLflow's place: no "
        "instance of the server could be reached. It may be restarting, so try again in a minute; "
        "then look at its log (`gcloud app logs read`)."
    )


def refused_error(response: requests.Response, origin: str, used: str) -> IAPRefusedError:
    """The error that tells what IAP's answer means.

    Args:
        response: an answer of IAP's own.
        origin: the server, ``https://HOST``.
        used: the credentials in words.
    """
    answer = " ".join(response.text.split())[:300]
    meaning = next((m for m in _MEANINGS if m.says in answer), _OTHER)
    if response.status_code == 302:
        meaning = next(m for m in _MEANINGS if m.says == "empty token")
    reason, means, remedy = meaning.reason, meaning.means, meaning.remedy
    skew = _clock_skew(response)
    if meaning.says == "expired" and abs(skew) > _TOLERATED_SKEW:
        reason = "clock"
        means = f"this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
        remedy = "Set it (NTP), then try again."
    if reason == "audience" and "desktop" in used and "impersonated" not in used:
        reason, remedy = "allowlist", _ALLOWLIST
    account = _account(answer)
    kind = "serviceAccount" if account.endswith("gserviceaccount.com") else "user"
    means = means.format(account=account, origin=origin)
    remedy = remedy.format(account=account, member=f"{kind}:{account}", origin=origin)
    return IAPRefusedError(
        f"IAP at {origin} refused the request ({response.status_code}: {answer!r}): {means}. "
        f"Used was {used}. {remedy}",
        reason=reason,
        status=response.status_code,
        answer=answer,
    )


def _account(answer: str) -> str:
    found = re.search(r"For user (\S+@\S+?)\.?$", answer)
    return found[1] if found else "the account"


def _clock_skew(response: requests.Response) -> float:
    try:
        return time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0
