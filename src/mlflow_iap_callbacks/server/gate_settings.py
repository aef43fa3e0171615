"""The gate's settings, from environment variables."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from .locations import is_plain
from .start_error import StartError

GOOGLE_KEYS_URL = "https://www.gstatic.com/iap/verify/public_key"

_AUDIENCE = re.compile(
    r"/projects/[0-9]+/"
    r"(apps/[^/\s]+|locations/[^/\s]+/services/[^/\s]+|global/backendServices/[0-9]+)"
)
_EMAIL = re.compile(r"[^@\s:;,]+@[^@\s:;,]+\.[^@\s:;,.]+")
_BUCKET = re.compile(r"(gs|gs-sessions|s3|abfss|wasbs)://[^/\s]+(/\S*)?")
_HOST_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*")
_DEFAULT_PERMISSION = "READ"  # MLflow's own
_PERMISSIONS = {"READ", "USE", "EDIT", "MANAGE", "NO_PERMISSIONS"}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_TRUE = {"true", "1"}
_FALSE = {"false", "0", ""}


@dataclass(frozen=True)
class GateSettings:
    """The settings of the gate.

    Attributes:
        audience: the audience that assertions must have: `/projects/NUMBER/apps/PROJECT_ID` on App
            Engine, `/projects/NUMBER/locations/REGION/services/NAME` on Cloud Run.
        keys_url: URL of the public keys, as a JSON object that has a PEM for each key id.
        has_permissions: whether MLflow enforces permissions per experiment and registered model.
            If not, everyone whom Identity-Aware Proxy admits can read and change everything.
        admins: lower-case e-mails of the users with all permissions.
        default_permission: MLflow's name of the permission that other users have by default.
        locations: URIs under which requests may name locations of artifacts, besides the server's
            own artifacts.
        webhook_hosts: hosts to which webhooks may send requests; without any, there are none.
    """

    audience: str
    keys_url: str = GOOGLE_KEYS_URL
    has_permissions: bool = False
    admins: tuple[str, ...] = ()
    default_permission: str = _DEFAULT_PERMISSION
    locations: tuple[str, ...] = ()
    webhook_hosts: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> GateSettings:
        """Read the variables MLFLOW_IAP_AUDIENCE, _KEYS_URL, _PERMISSIONS, _ADMINS and the others.

        Raises:
            StartError: if one of them is invalid.
        """
        settings = cls(
            _audience(environment.get("MLFLOW_IAP_AUDIENCE", "").strip()),
            _keys_url(environment.get("MLFLOW_IAP_KEYS_URL", "").strip() or GOOGLE_KEYS_URL),
            wants_permissions(environment),
            _admins(environment.get("MLFLOW_IAP_ADMINS", "")),
            _default_permission(environment.get("MLFLOW_IAP_DEFAULT_PERMISSION", "").strip()),
            _locations(environment.get("MLFLOW_IAP_LOCATIONS", "")),
            _webhook_hosts(environment.get("MLFLOW_IAP_WEBHOOK_HOSTS", "")),
        )
        if settings.has_permissions and not settings.admins:
            raise StartError(
                "MLFLOW_IAP_PERMISSIONS is on, but nobody can grant permissions. Set "
                "MLFLOW_IAP_ADMINS to one or more e-mails, separated by commas."
            )
        if settings.has_permissions and environment.get("MLFLOW_AUTH_CONFIG_PATH"):
            raise StartError(
                "MLFLOW_AUTH_CONFIG_PATH is set, but it is for users with passwords. Unset it, and "
                "set MLFLOW_IAP_DEFAULT_PERMISSION instead."
            )
        return settings


def lower(email: str) -> str:
    """Return an e-mail in lower case, as far as it is ASCII.

    Otherwise, different letters become the same one: the Kelvin sign becomes a k.
    """
    return email.translate(_LOWER)


def _audience(text: str) -> str:
    if not _AUDIENCE.fullmatch(text):
        found = f"is {text!r}" if text else "is not set"
        raise StartError(
            f"MLFLOW_IAP_AUDIENCE {found}, so every request would be rejected. Set it to "
            "/projects/NUMBER/apps/PROJECT_ID on App Engine, or to "
            "/projects/NUMBER/locations/REGION/services/NAME on Cloud Run."
        )
    return text


def _keys_url(text: str) -> str:
    try:
        url = urlsplit(text)
    except ValueError:
        url = urlsplit("")
    if (url.scheme == "https" and url.hostname) or (
        url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")
    ):
        return text
    raise StartError(
        f"MLFLOW_IAP_KEYS_URL is {text!r}, so others on the network could replace the keys. Use "
        "https, or http on this machine."
    )


def _admins(text: str) -> tuple[str, ...]:
    emails = tuple(lower(email.strip()) for email in text.split(",") if email.strip())
    for email in emails:
        if not _EMAIL.fullmatch(email):
            raise StartError(
                f"MLFLOW_IAP_ADMINS contains {email!r}, which is not the e-mail of a user. Set it "
                "to one or more e-mails, separated by commas, without groups and prefixes."
            )
    return emails


def _locations(text: str) -> tuple[str, ...]:
    locations = tuple(uri.strip() for uri in text.split(",") if uri.strip())
    for uri in locations:
        # A bucket or a folder in it: `file:` would be the files of the server's own image.
        if not _BUCKET.fullmatch(uri) or not is_plain(uri):
            raise StartError(
                f"MLFLOW_IAP_LOCATIONS contains {uri!r}. Set it to buckets or folders in them, "
                "such as gs://BUCKET/FOLDER, separated by commas."
            )
    return locations


def _webhook_hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip() for host in text.split(",") if host.strip())
    for host in hosts:
        if not _HOST_NAME.fullmatch(host):
            raise StartError(
                f"MLFLOW_IAP_WEBHOOK_HOSTS contains {host!r}, which is not the name of a host in "
                "lower case. Set it to HOST,HOST, without schemes, ports, paths and wildcards."
            )
    return hosts


def _default_permission(text: str) -> str:
    if text and text not in _PERMISSIONS:
        raise StartError(
            f"MLFLOW_IAP_DEFAULT_PERMISSION is {text!r}. Set it to one of "
            f"{', '.join(sorted(_PERMISSIONS))}."
        )
    return text or _DEFAULT_PERMISSION


def wants_permissions(environment: Mapping[str, str]) -> bool:
    """Read MLFLOW_IAP_PERMISSIONS.

    Raises:
        StartError: if it is neither true nor false.
    """
    text = environment.get("MLFLOW_IAP_PERMISSIONS", "").strip().lower()
    if text not in _TRUE | _FALSE:
        raise StartError(f"MLFLOW_IAP_PERMISSIONS is {text!r}. Set it to true or false.")
    return text in _TRUE
