"""The IAM Service Account Credentials API: impersonates a service account without its key."""

from __future__ import annotations

import base64
import binascii
import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from .accounts import Account
from .responses import google_error
from .state import CloudState
from .token_endpoint import CLOUD_PLATFORM
from .tokens import AccessToken

_SCOPES = {CLOUD_PLATFORM, "https://www.googleapis.com/auth/iam"}
_LONGEST_JWT = 12 * 3600
_EXPECTED = (
    "Expected OAuth 2 access token, login cookie or other valid authentication credential. See "
    "https://developers.google.com/identity/sign-in/web/devconsole-project."
)


def bearer(request: web.Request) -> str:
    """Return the bearer token of a request, or an empty string."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class IamCredentials:
    """Handles the API's four methods, for callers with the Token Creator role on the account."""

    def __init__(self, state: CloudState) -> None:
        self._state = state
        self._methods: dict[
            str, tuple[str, Callable[[Account, Mapping[str, Any]], web.Response]]
        ] = {
            "generateIdToken": ("getOpenIdToken", self._id_token),
            "generateAccessToken": ("getAccessToken", self._access_token),
            "signJwt": ("signJwt", self._sign_jwt),
            "signBlob": ("signBlob", self._sign_blob),
        }

    async def call(self, request: web.Request) -> web.Response:
        target, _, method = request.match_info["call"].rpartition(":")
        if method not in self._methods:
            return google_error(404, "Method not found.")
        if not bearer(request):
            message = "Request is missing required authentication credential. "
            return google_error(401, message + _EXPECTED)
        caller = self._state.mint.live_access_token(bearer(request))
        if caller is None:
            message = "Request had invalid authentication credentials. "
            return google_error(401, message + _EXPECTED)
        permission, respond = self._methods[method]
        if (denial := self._denial(caller, target, permission)) is not None:
            return denial
        try:
            fields = json.loads(await request.read())
            return respond(self._state.accounts.service_account(target), fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            return google_error(400, "Request contains an invalid argument.")

    def _denial(self, caller: AccessToken, target: str, permission: str) -> web.Response | None:
        if not _SCOPES & caller.scopes:
            return google_error(403, "Request had insufficient authentication scopes.")
        if self._state.accounts.may_impersonate(caller.account.name, target):
            return None
        permission = f"iam.serviceAccounts.{permission}"
        message = f"Permission '{permission}' denied on resource (or it may not exist)."
        reason = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "IAM_PERMISSION_DENIED",
            "domain": "iam.googleapis.com",
            "metadata": {"permission": permission},
        }
        return google_error(403, message, [reason])

    def _id_token(self, account: Account, fields: Mapping[str, Any]) -> web.Response:
        with_email = str(fields.get("includeEmail", False)).lower() == "true"
        token = self._state.mint.id_token(
            account,
            str(fields["audience"]),
            source="generateIdToken",
            azp=account.id,
            email=with_email,
        )
        return web.json_response({"token": token})

    def _access_token(self, account: Account, fields: Mapping[str, Any]) -> web.Response:
        lifetime = float(str(fields.get("lifetime", "3600s")).removesuffix("s"))
        token, seconds = self._state.mint.access_token(
            account, list(fields["scope"]), source="generateAccessToken", lifetime=lifetime
        )
        ends = datetime.datetime.fromtimestamp(self._state.now() + seconds, datetime.timezone.utc)
        return web.json_response(
            {"accessToken": token, "expireTime": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
        )

    def _sign_jwt(self, account: Account, fields: Mapping[str, Any]) -> web.Response:
        claims = dict(json.loads(fields["payload"]))
        if float(claims.get("exp", 0)) > self._state.now() + _LONGEST_JWT:
            return google_error(400, "The 'exp' claim is more than 12 hours in the future.")
        token = self._state.mint.signed_jwt(account, claims)
        key_id = self._state.accounts.key_of(account).id
        return web.json_response({"keyId": key_id, "signedJwt": token})

    def _sign_blob(self, account: Account, fields: Mapping[str, Any]) -> web.Response:
        try:
            payload = base64.b64decode(fields["payload"], validate=True)
        except binascii.Error:
            return google_error(400, "Invalid value at 'payload' (TYPE_BYTES), Base64 expected.")
        key = self._state.accounts.key_of(account)
        signature = base64.b64encode(key.sign_bytes(payload)).decode()
        return web.json_response({"keyId": key.id, "signedBlob": signature})
