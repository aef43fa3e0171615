"""A secret from Google's Secret Manager, read with the machine's own identity."""

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
_TIMEOUT = 20.0  # seconds for one answer; a start has nothing to do meanwhile


def read_secret(name: str) -> str:
    """The text of a secret's version, without the line end that `echo` leaves at its end.

    Args:
        name: ``projects/PROJECT/secrets/NAME/versions/VERSION``, the version a number or
            ``latest``.

    Raises:
        StartError: not such a name, or Secret Manager does not give it to this identity.
    """
    if not _NAME.fullmatch(name):
        raise StartError(
            f"{name!r} is not the name of a secret's version. Give it as "
            "projects/PROJECT/secrets/NAME/versions/latest."
        )
    url = f"https://secretmanager.googleapis.com/v1/{name}:access"
    try:
        # Over REST: the client library would bring gRPC, 40 MB of it.
        credentials, _ = google.auth.default(scopes=_SCOPES)
        with AuthorizedSession(credentials) as session:
            response = session.get(url, timeout=_TIMEOUT)
    except (GoogleAuthError, RequestException) as error:
        raise StartError(
            f"The secret {name} cannot be read: {first_line(error)}. Check the service account "
            "that this server runs as."
        ) from None
    if response.status_code != HTTPStatus.OK:
        raise StartError(
            f"The secret {name} cannot be read: Secret Manager answers {response.status_code}. "
            f"{_ADVICE.get(response.status_code, 'Try again.')}"
        )
    try:
        text = base64.b64decode(response.json()["payload"]["data"]).decode()
    except (KeyError, TypeError, ValueError):
        raise StartError(
            f"The secret {name} holds no text. Add a version that does: "
            "`gcloud secrets versions add`."
        ) from None
    return text.removesuffix("\n")


_ADVICE: dict[int, str] = {
    HTTPStatus.FORBIDDEN: (
        "Give the service account that this server runs as roles/secretmanager.secretAccessor on "
        "it, and enable secretmanager.googleapis.com in the project."
    ),
    HTTPStatus.NOT_FOUND: "Create it with `gcloud secrets create`, or correct its name.",
    HTTPStatus.BAD_REQUEST: "Its version is disabled or destroyed: add one that is not.",
}
