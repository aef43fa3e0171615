"""The part of a virtual machine's metadata server that google-auth uses."""

from __future__ import annotations

from aiohttp import web

from .accounts import PROJECT_ID
from .state import CloudState
from .token_endpoint import CLOUD_PLATFORM

_FLAVOR = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
_SCOPES = [CLOUD_PLATFORM, "openid", "https://www.googleapis.com/auth/userinfo.email"]


class MetadataServer:
    """Responds for a virtual machine that runs as `CloudState.vm_account`."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    async def root(self, request: web.Request) -> web.Response:
        return web.Response(text="computeMetadata/\n", headers=_FLAVOR)

    async def get(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata-Flavor") != "Google":
            return web.Response(
                status=403, text="Missing Metadata-Flavor:Google header.", headers=_FLAVOR
            )
        account = self._state.accounts[self._state.vm_account]
        prefix, _, leaf = request.match_info["path"].rstrip("/").rpartition("/")
        holders = {f"instance/service-accounts/{name}" for name in ("default", account.name)}
        if prefix == "instance/service-accounts" and f"{prefix}/{leaf}" in holders:
            return web.json_response(
                {"aliases": ["default"], "email": account.name, "scopes": _SCOPES}, headers=_FLAVOR
            )
        if prefix in holders and leaf == "identity":
            return self._identity(request)
        if prefix in holders and leaf == "token":
            return self._token(request)
        texts = {
            "email": account.name if prefix in holders else None,
            "scopes": "\n".join(_SCOPES) if prefix in holders else None,
            "universe-domain": "googleapis.com" if prefix == "universe" else None,
            "project-id": PROJECT_ID if prefix == "project" else None,
        }
        text = texts.get(leaf)
        if text is None:
            return web.Response(status=404, text="Not Found", headers=_FLAVOR)
        # The type tells google-auth not to parse it as JSON.
        return web.Response(text=text, content_type="application/text", headers=_FLAVOR)

    def _identity(self, request: web.Request) -> web.Response:
        audience = request.query.get("audience", "")
        if not audience:
            return web.Response(
                status=400, text="non-empty audience parameter required", headers=_FLAVOR
            )
        account = self._state.accounts[self._state.vm_account]
        with_email = request.query.get("format") == "full"
        token = self._state.mint.id_token(
            account, audience, source="metadata", azp=account.id, email=with_email
        )
        return web.Response(text=token, headers=_FLAVOR)

    def _token(self, request: web.Request) -> web.Response:
        scopes = request.query.get("scopes", "")
        token, seconds = self._state.mint.access_token(
            self._state.accounts[self._state.vm_account],
            scopes.replace(",", " ").split() or _SCOPES,
            source="metadata",
        )
        return web.json_response(
            {"access_token": token, "expires_in": int(seconds), "token_type": "Bearer"},
            headers=_FLAVOR,
        )
