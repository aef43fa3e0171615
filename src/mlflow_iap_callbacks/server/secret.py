"""Reads a secret from Google's Secret Manager with Application Default Credentials."""

from __future__ import annotations

import base64
import re
from http import HTTPStatus

import google.auth
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from requests import RequestException

from .start_error import StartError, first_line

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_NAME = re.compile(r"projects/[^/]+/secrets/[^/]+/versions/[^/]+")
_TIMEOUT = 20.0  # seconds; long, because the server cannot start without the secret


def read_secret(name: str) -> str:
    """Return the text of a secret, without a newline at its end (`echo` adds one).

    Args:
        name: ``projects/PROJECT/secrets/NAME/versions/VERSION``, where VERSION is a number or
            ``latest``.

    Raises:
        StartError: if the name is malformed, or the secret cannot be read.
    """
    if not _NAME.fullmatch(name):
        raise StartError(
            f"{name!r} is not the name of a secret's version. Use the form "
            "projects/PROJECT/secrets/NAME/versions/latest."
        )
    url = f"https://secretmanager.googleapis.com/v1/{name}:access"
    try:
        # With REST, because the client library depends on gRPC, which takes 40 MB.
        credentials, _ = google.auth.default(scopes=_SCOPES)
        with AuthorizedSession(credentials) as session:
            response = session.get(url, timeout=_TIMEOUT)
    except (GoogleAuthError, RequestException) as error:
        raise StartError(
            f"The secret {name} cannot be read: {first_line(error)}. Check this server's service "
            "account."
        ) from None
    if response.status_code != HTTPStatus.OK:
        raise StartError(
            f"The secret {name} cannot be read: Secret Manager responded with "
            f"{response.status_code}. {_ADVICE.get(response.status_code, 'Try again.')}"
        )
    try:
        text = base64.b64decode(response.json()["payload"]["data"]).decode()
    except (KeyError, TypeError, ValueError):
        raise StartError(
            f"The secret {name} is not text. Add a version that is: `gcloud secrets versions add`."
        ) from None
    return text.removesuffix("\n")


_ADVICE: dict[int, str] = {
    HTTPStatus.FORBIDDEN: (
        "Grant this server's service account roles/secretmanager.secretAccessor on it, and enable "
        "secretmanager.googleapis.com in the project."
    ),
    HTTPStatus.NOT_FOUND: "Create it with `gcloud secrets create`, or correct its name.",
    HTTPStatus.BAD_REQUEST: "Its version is disabled or destroyed: add a new one.",
}
