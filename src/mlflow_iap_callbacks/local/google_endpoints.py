"""All of Google's endpoints except Identity-Aware Proxy, as one web application."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .faults import KINDS_AT
from .iam_credentials import IamCredentials, bearer
from .metadata_server import MetadataServer
from .request_log import SeenRequest, without_secrets
from .responses import fault_response, google_error, http_date
from .secret_manager import SecretManager
from .sign_in import PAGE_PATH, SignIn
from .sockets import reset
from .state import CloudState
from .token_endpoint import TokenEndpoint


def google_application(state: CloudState, sign_in: SignIn) -> web.Application:
    """Return the application. It ignores host names, because no two of them use the same path."""
    tokens = TokenEndpoint(state)
    metadata = MetadataServer(state)
    keys = _PublicKeys(state)
    application = web.Application(middlewares=[_observer(state)])
    application.add_routes(
        [
            web.post("/token", tokens.token),
            web.post("/v1/token", tokens.exchange),
            web.post("/v1/projects/-/serviceAccounts/{call}", IamCredentials(state).call),
            web.get(
                "/v1/{name:projects/.+/secrets/.+/versions/.+}:access", SecretManager(state).access
            ),
            web.get("/", metadata.root),
            web.get("/computeMetadata/v1/{path:.*}", metadata.get),
            web.get("/robot/v1/metadata/x509/{email}", keys.of_service_account),
            web.get("/oauth2/v1/certs", keys.of_google),
            web.get("/iap/verify/public_key", keys.of_iap),
            web.get("/iap/verify/public_key-jwk", keys.of_iap_as_jwk),
            web.get(PAGE_PATH, sign_in.show_page),
            web.post(PAGE_PATH, sign_in.choose_account),
            # google-auth makes requests whose failure it ignores, such as for allowedLocations.
            web.route("*", "/{path:.*}", _not_found),
        ]
    )

    async def add_date(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Date"] = http_date(state.now())

    application.on_response_prepare.append(add_date)
    return application


class _PublicKeys:
    def __init__(self, state: CloudState) -> None:
        self._state = state

    async def of_google(self, request: web.Request) -> web.Response:
        key = self._state.mint.google_key
        return web.json_response({key.id: key.certificate_pem})

    async def of_service_account(self, request: web.Request) -> web.Response:
        try:
            account = self._state.accounts[request.match_info["email"]]
        except KeyError:
            return google_error(404, "Service account not found.")
        key = self._state.accounts.key_of(account)
        return web.json_response({key.id: key.certificate_pem})

    async def of_iap(self, request: web.Request) -> web.Response:
        return web.json_response({key.id: key.public_pem for key in self._state.assertion_keys})

    async def of_iap_as_jwk(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": [key.jwk for key in self._state.assertion_keys]})


async def _not_found(request: web.Request) -> web.Response:
    return google_error(404, "Requested entity was not found.")


def _observer(state: CloudState) -> Middleware:
    """Return the middleware that logs each request and injects faults."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        arrived = time.time()
        body = await request.read()
        fault = state.faults.find("google", request.method, request.raw_path, KINDS_AT["google"])
        kind = fault.kind if fault else None
        response: web.StreamResponse = web.Response()
        if kind not in ("answer", "reset_before"):
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text=error.text)
        if fault is not None:
            response = fault_response(fault)
        is_reset = kind in ("reset_before", "reset_after")
        caller = state.mint.find_access_token(bearer(request))
        state.google_requests.append(
            SeenRequest(
                time=arrived,
                method=request.method,
                path=request.raw_path,
                status=0 if is_reset else response.status,
                account=caller.account.name if caller else None,
                token_kind="access_token" if caller else None,
                credential_header="authorization" if caller else None,
                iap_answer=False,
                reached_upstream=False,
                body_bytes=len(body),
                headers=without_secrets(request.headers.items()),
            )
        )
        return reset(request) if is_reset else response

    return observe
