"""Secret Manager: returns the texts of secrets to accounts that may read them."""

from __future__ import annotations

import base64

from aiohttp import web

from .iam_credentials import bearer
from .responses import google_error
from .state import CloudState


class SecretManager:
    """Handles `versions.access` with the texts in `CloudState.secrets`."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    async def access(self, request: web.Request) -> web.Response:
        caller = self._state.mint.live_access_token(bearer(request))
        if caller is None:
            return google_error(401, "Request had invalid authentication credentials.")
        name = request.match_info["name"]
        if caller.account.name not in self._state.secret_readers:
            return google_error(
                403, f"Permission 'secretmanager.versions.access' denied for resource '{name}'."
            )
        secret = name.rpartition("/versions/")[0]
        if secret not in self._state.secrets:
            return google_error(404, f"Secret [{secret}] not found or has no versions.")
        data = base64.b64encode(self._state.secrets[secret].encode()).decode()
        return web.json_response({"name": name, "payload": {"data": data}})
