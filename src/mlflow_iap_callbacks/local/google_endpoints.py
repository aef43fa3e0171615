"""All of Google's endpoints but Identity-Aware Proxy, as one web application."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .connection import reset
from .faults import KINDS_AT, Fault
from .iam_credentials import IamCredentials, bearer
from .metadata_server import MetadataServer
from .request_log import SeenRequest, without_secrets
from .responses import google_error, http_date
from .secret_manager import SecretManager
from .sign_in import PAGE_PATH, SignIn
from .state import CloudState
from .token_endpoint import TokenEndpoint


def google_application(
    state: CloudState, token_endpoint: TokenEndpoint, sign_in: SignIn
) -> web.Application:
    """Return the application; it does not tell host names apart, as no two paths collide."""
    metadata = MetadataServer(state)
    iam = IamCredentials(state)
    secrets = SecretManager(state)
    keys = _PublicKeys(state)
    application = web.Application(middlewares=[_observer(state)])
    application.add_routes(
        [
            web.post("/token", token_endpoint.token),
            web.post("/v1/token", token_endpoint.exchange),
            web.post("/v1/projects/-/serviceAccounts/{call}", iam.call),
            web.get("/v1/{name:projects/.+/secrets/.+/versions/.+}:access", secrets.access),
            web.get("/", metadata.root),
            web.get("/computeMetadata/v1/{path:.*}", metadata.get),
            web.get("/robot/v1/metadata/x509/{email}", keys.of_service_account),
            web.get("/oauth2/v1/certs", keys.of_google),
            web.get("/iap/verify/public_key", keys.of_iap),
            web.get("/iap/verify/public_key-jwk", keys.of_iap_as_jwk),
            web.get(PAGE_PATH, sign_in.show_page),
            web.post(PAGE_PATH, sign_in.choose_account),
            # google-auth asks for more than it needs (allowedLocations, projects).
            web.route("*", "/{path:.*}", _not_found),
        ]
    )

    async def stamp(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Date"] = http_date(state.now())

    application.on_response_prepare.append(stamp)
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
        if account.kind != "service_account":
            return google_error(404, "Service account not found.")
        key = self._state.accounts.key_of(account)
        return web.json_response({key.id: key.certificate_pem})

    async def of_iap(self, request: web.Request) -> web.Response:
        keys = self._state.assertion_keys
        return web.json_response({key.id: key.public_pem for key in keys})

    async def of_iap_as_jwk(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": [key.jwk for key in self._state.assertion_keys]})


async def _not_found(request: web.Request) -> web.Response:
    return google_error(404, "Requested entity was not found.")


def _observer(
    state: CloudState,
) -> Middleware:
    """Return the middleware that notes each request and lets faults strike."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        came_in = time.time()
        body = await request.read()
        fault = state.faults.strike("google", request.method, request.raw_path, KINDS_AT["google"])
        if fault is not None and fault.kind in ("answer", "reset_before"):
            response: web.StreamResponse = _ordered(fault)
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text=error.text)
            if fault is not None and fault.kind == "answer_after":
                response = _ordered(fault)
        is_reset = fault is not None and fault.kind in ("reset_before", "reset_after")
        caller = state.mint.find_access_token(bearer(request))
        state.google_requests.append(
            SeenRequest(
                time=came_in,
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


def _ordered(fault: Fault) -> web.Response:
    if fault.body is not None:
        answer = web.Response(status=fault.status, text=fault.body)
    else:
        answer = google_error(fault.status, "The service is currently unavailable.")
    if fault.retry_after is not None:
        answer.headers["Retry-After"] = f"{fault.retry_after:g}"
    return answer
