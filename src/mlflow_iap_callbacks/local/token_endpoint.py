"""Google's OAuth 2.0 token endpoint and its Security Token Service."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from .accounts import WORKLOAD, Account
from .keys import parse_jwt
from .state import CloudState

JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"

# google-auth uses this constant, no matter what token_uri the key file has.
_ASSERTION_AUDIENCE = "https://oauth2.googleapis.com/token"
_CLOCK_TOLERANCE = 600.0  # seconds
_BAD_TIME = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)

_Grant = Callable[[Mapping[str, str]], dict[str, object]]


class OAuthError(Exception):
    """An error response of the OAuth 2.0 protocol."""

    def __init__(self, code: str, description: str, status: int = 400) -> None:
        super().__init__(code, description, status)
        self.code, self.description, self.status = code, description, status


class TokenEndpoint:
    """Exchanges signed assertions, refresh tokens and federated tokens for Google's tokens."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    async def token(self, request: web.Request) -> web.Response:
        return await self._respond(request, {JWT_GRANT: self._jwt, "refresh_token": self._refresh})

    async def exchange(self, request: web.Request) -> web.Response:
        return await self._respond(request, {EXCHANGE_GRANT: self._exchange})

    async def _respond(self, request: web.Request, grants: Mapping[str, _Grant]) -> web.Response:
        fields = {name: str(value) for name, value in (await request.post()).items()}
        grant = grants.get(fields.get("grant_type", ""))
        try:
            if grant is None:
                raise OAuthError("unsupported_grant_type", "Invalid grant_type")
            return web.json_response(grant(fields))
        except OAuthError as error:
            body = {"error": error.code, "error_description": error.description}
            return web.json_response(body, status=error.status)

    def _jwt(self, fields: Mapping[str, str]) -> dict[str, object]:
        account, claims = self._check_assertion(fields.get("assertion", ""))
        mint = self._state.mint
        if audience := claims.get("target_audience"):
            return {
                "id_token": mint.id_token(
                    account, str(audience), source="token_uri", azp=account.name
                )
            }
        if scopes := str(claims.get("scope", "")).split():
            token, seconds = mint.access_token(account, scopes, source="token_uri")
            return {"access_token": token, "expires_in": int(seconds), "token_type": "Bearer"}
        raise OAuthError("invalid_scope", "Invalid OAuth scope or ID token audience provided.")

    def _check_assertion(self, assertion: str) -> tuple[Account, dict[str, object]]:
        try:
            header, claims = parse_jwt(assertion)
            issued, expires = float(claims["iat"]), float(claims["exp"])
        except (ValueError, KeyError, TypeError):
            raise OAuthError("invalid_grant", "Bad Request") from None
        owner = self._state.accounts.owner_of_key(header.get("kid"))
        if (
            owner is None
            or owner[0].name != claims.get("iss")
            or not owner[1].has_signed(assertion)
        ):
            raise OAuthError("invalid_grant", "Invalid JWT Signature.")
        if claims.get("aud") != _ASSERTION_AUDIENCE:
            raise OAuthError("invalid_grant", "Invalid JWT: Failed audience check.")
        now = self._state.now()
        in_time = issued - _CLOCK_TOLERANCE <= now < expires + _CLOCK_TOLERANCE
        if not in_time or expires > issued + 3600:
            raise OAuthError("invalid_grant", _BAD_TIME)
        return owner[0], claims

    def _refresh(self, fields: Mapping[str, str]) -> dict[str, object]:
        grant = self._state.mint.refresh_tokens.get(fields.get("refresh_token", ""))
        if grant is None:
            raise OAuthError("invalid_grant", "Bad Request")
        if fields.get("client_id") != grant.client_id:
            raise OAuthError("unauthorized_client", "Unauthorized", status=401)
        if grant.revoked:
            raise OAuthError("invalid_grant", "Token has been expired or revoked.")
        scopes = frozenset(fields.get("scope", "").split()) or grant.scopes
        if not scopes <= grant.scopes:
            raise OAuthError("invalid_scope", "Some requested scopes were invalid.")
        token, seconds = self._state.mint.access_token(
            grant.account, scopes, source="refresh_token", client_id=grant.client_id
        )
        tokens: dict[str, object] = {
            "access_token": token,
            "expires_in": int(seconds),
            "scope": " ".join(sorted(scopes)),
            "token_type": "Bearer",
        }
        if "openid" in scopes:
            tokens["id_token"] = self._state.mint.id_token(
                grant.account, grant.client_id, source="refresh_token", azp=grant.client_id
            )
        return tokens

    def _exchange(self, fields: Mapping[str, str]) -> dict[str, object]:
        workload = self._state.accounts[WORKLOAD]
        key = self._state.accounts.key_of(workload)
        try:
            is_genuine = key.has_signed(fields.get("subject_token", ""))
        except ValueError:
            is_genuine = False
        if not is_genuine:
            raise OAuthError(
                "invalid_grant", "The given token could not be verified by its issuer's keys."
            )
        scopes = fields.get("scope", "").split() or [CLOUD_PLATFORM]
        token, seconds = self._state.mint.access_token(workload, scopes, source="sts")
        return {
            "access_token": token,
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "expires_in": int(seconds),
            "token_type": "Bearer",
        }
