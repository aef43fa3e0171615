"""Identity-Aware Proxy: forwards requests to the application, or responds to them itself."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from . import responses, sockets
from .accounts import MANAGED_CLIENT_ID, Account
from .assertions import sign_assertion
from .faults import Fault, FaultKind
from .iap_authentication import EMPTY_TOKEN, EXPIRED, AuthenticationError, Identity, identify
from .request_log import SeenRequest, without_secrets
from .sign_in import CALLBACK_PATH, SignIn
from .state import CloudState

_MAX_REQUEST_BYTES = 32 * 1024 * 1024  # App Engine's limit
_HOP_BY_HOP = {
    *("connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization"),
    *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
}


class IapProxy:
    """Protects an application.

    Args:
        state: the cloud.
        sign_in: handles people with a browser.
        upstream: the application's origin.
    """

    def __init__(self, state: CloudState, sign_in: SignIn, upstream: str) -> None:
        self._state = state
        self._sign_in = sign_in
        self._upstream = upstream.rstrip("/")
        self._session: aiohttp.ClientSession

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        application.cleanup_ctx.append(self._open_session)
        application.on_response_prepare.append(self._add_headers)
        return application

    async def _open_session(self, application: web.Application) -> AsyncIterator[None]:
        # Without keep-alive: the application could close an idle connection just as a POST is sent
        # on it, and this proxy would respond with 502 where the real one does not.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as self._session:
            yield

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Date"] = responses.http_date(self._state.now())
        response.headers["Server"] = "Google Frontend"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        visit = _Visit(self._state, request)
        if self._state.delay:
            await asyncio.sleep(self._state.delay)
        failure = ""
        try:
            visit.identity = self._identify(request)
        except AuthenticationError as error:
            failure = str(error)
        if (fault := self._find_fault(request, "answer", "reset_before")) is not None:
            return visit.fail(fault)
        if request.path == CALLBACK_PATH:
            return visit.end(await self._finish_sign_in(request), iap_answer=True)
        mode = request.query.get("gcp-iap-mode")
        if mode == "CLEAR_LOGIN_COOKIE":
            return visit.end(self._sign_in.sign_out(request.path), iap_answer=True)
        if visit.identity is None:
            return visit.end(self._ask_for_credentials(request, failure), iap_answer=True)
        if mode == "IDENTITY":
            return visit.end(_identity_page(visit.identity.account), iap_answer=True)
        user = visit.identity.account.name
        if user not in self._state.members:
            return visit.end(responses.access_denied(user), iap_answer=True)
        if (request.content_length or 0) > _MAX_REQUEST_BYTES:
            return visit.end(responses.too_large())
        return await self._let_in(visit, visit.identity)

    def _identify(self, request: web.Request) -> Identity:
        try:
            return identify(self._state, request.headers, request.host, request.path)
        except AuthenticationError:
            account = self._sign_in.signed_in(request.cookies)
            if account is None:
                raise
            return Identity(account)

    def _find_fault(self, request: web.Request, *kinds: FaultKind) -> Fault | None:
        return self._state.faults.find("iap", request.method, request.raw_path, kinds)

    async def _finish_sign_in(self, request: web.Request) -> web.Response:
        try:
            return await self._sign_in.finish(request)
        except web.HTTPException as error:
            return responses.iap_response(error.status, error.text or error.reason)

    def _ask_for_credentials(self, request: web.Request, failure: str) -> web.Response:
        accept = request.headers.get("Accept", "*/*")
        can_redirect = (
            request.method == "GET"
            and failure == EMPTY_TOKEN
            and ("*/*" in accept or "text/html" in accept)
            and request.headers.get("X-Requested-With") != "XMLHttpRequest"
        )
        if not can_redirect:
            return responses.iap_response(401, failure)
        is_browser = (
            request.headers.get("Sec-Fetch-Mode") == "navigate" or "text/html" in accept.lower()
        )
        location = (
            self._sign_in.page_url(request.raw_path) if is_browser else self._google_sign_in()
        )
        nonce = f"GCP_IAP_XSRF_NONCE_{secrets.token_urlsafe(12)}=1"
        cookie = f"{nonce}; path=/; Max-Age=600; Secure; HttpOnly; SameSite=none"
        return responses.iap_response(302, failure, {"Location": location, "Set-Cookie": cookie})

    def _google_sign_in(self) -> str:
        client_id = self._state.client_id or MANAGED_CLIENT_ID
        query = {
            "client_id": client_id,
            "response_type": "code",
            "scope": "openid email",
            "redirect_uri": f"https://iap.googleapis.com/v1/oauth/clientIds/{client_id}:handleRedirect",
            "cred_ref": "true",
            "state": secrets.token_urlsafe(24),
        }
        return f"https://accounts.google.com/o/oauth2/v2/auth?{urlencode(query)}"

    async def _let_in(self, visit: _Visit, identity: Identity) -> web.StreamResponse:
        request = visit.request
        kinds: tuple[FaultKind, ...] = ("answer_after", "reset_after", "reset_midway")
        if request.body_exists and identity.token:
            kinds = (*kinds, "reject_midway")
        fault = self._find_fault(request, *kinds)
        if fault is not None and fault.kind == "reject_midway":
            return await self._reject_midway(visit, identity)
        return await self._forward(visit, identity, fault)

    async def _reject_midway(self, visit: _Visit, identity: Identity) -> web.Response:
        half = (visit.request.content_length or 0) // 2
        async for _ in visit.body(up_to=half):
            pass
        if identity.token_kind == "signed_jwt":  # noqa: S105 - a kind
            # A JWT that is signed again within the same second has the same text.
            await asyncio.sleep(max(0.0, math.floor(identity.signed_at) + 1.0 - time.time()))
        self._state.mint.revoke(identity.token)
        response = responses.iap_response(401, EXPIRED)
        # aiohttp goes on reading the body for a while, so that clients that send all of it before
        # they read the response get the response.
        response.force_close()
        return visit.end(response, iap_answer=True)

    async def _forward(
        self, visit: _Visit, identity: Identity, fault: Fault | None
    ) -> web.StreamResponse:
        request = visit.request
        try:
            async with self._session.request(
                request.method,
                URL(self._upstream + request.raw_path, encoded=True),
                headers=self._headers_for_application(request, identity),
                data=visit.body() if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            ) as answer:
                visit.reached_upstream = True
                if fault is not None and fault.kind in ("answer_after", "reset_after"):
                    await answer.read()
                    return visit.fail(fault)
                return await self._pass_on(visit, answer, cut=fault is not None)
        except aiohttp.ClientError as error:
            visit.reached_upstream = not isinstance(error, aiohttp.ClientConnectorError)
            if visit.too_large:
                return visit.end(responses.too_large())
            if visit.ended:
                # The application broke off in the middle of its response, so do the same.
                return sockets.reset(request)
            return visit.end(responses.front_end_error(502))

    async def _pass_on(
        self, visit: _Visit, answer: aiohttp.ClientResponse, *, cut: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(_end_to_end(answer.headers))
        visit.log(status=0 if cut else answer.status)
        if cut:
            body = await answer.read()
            await response.prepare(visit.request)
            await response.write(body[: len(body) // 2])
            await sockets.cut(visit.request)
            return response
        await response.prepare(visit.request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    def _headers_for_application(
        self, request: web.Request, identity: Identity
    ) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers)
        for name in list(headers):
            if name.lower().startswith("x-goog-"):
                headers.popall(name, None)
        if identity.header == "authorization":
            headers.popall("Authorization", None)
        account = identity.account
        headers["X-Goog-IAP-JWT-Assertion"] = sign_assertion(self._state, account)
        headers["X-Goog-Authenticated-User-Email"] = f"accounts.google.com:{account.name}"
        headers["X-Goog-Authenticated-User-Id"] = f"accounts.google.com:{account.id}"
        return headers


class _Visit:
    """A request on its way through the proxy, and its entry in the request log."""

    def __init__(self, state: CloudState, request: web.Request) -> None:
        self.request = request
        self.identity: Identity | None = None
        self.reached_upstream = False
        self.too_large = False
        self.ended = False
        self._state = state
        self._arrived = time.time()
        self._body_bytes = 0

    async def body(self, up_to: float = math.inf) -> AsyncIterator[bytes]:
        """Yield and count the request's body, until at least `up_to` bytes have arrived."""
        async for chunk in self.request.content.iter_any():
            self._body_bytes += len(chunk)
            if self._body_bytes > _MAX_REQUEST_BYTES:
                self.too_large = True
                raise ValueError("the request is larger than App Engine accepts")
            yield chunk
            if self._body_bytes >= up_to:
                return

    def end(self, response: web.Response, *, iap_answer: bool = False) -> web.Response:
        self.log(response.status, iap_answer=iap_answer)
        return response

    def fail(self, fault: Fault) -> web.Response:
        """Respond as a fault says, or reset the connection."""
        if fault.kind in ("reset_before", "reset_after"):
            self.log(status=0)
            return sockets.reset(self.request)
        user = self.identity.account.name if self.identity else ""
        return self.end(responses.fault_response(fault, user=user), iap_answer=fault.from_iap)

    def log(self, status: int, *, iap_answer: bool = False) -> None:
        """Log the request, before its response is sent, so that the client finds the entry."""
        self.ended = True
        identity = self.identity
        # The callback's query has a sign-in code, which must not be logged.
        is_callback = self.request.path == CALLBACK_PATH
        self._state.requests.append(
            SeenRequest(
                time=self._arrived,
                method=self.request.method,
                path=self.request.path if is_callback else self.request.raw_path,
                status=status,
                account=identity.account.name if identity else None,
                token_kind=identity.token_kind if identity else None,
                credential_header=identity.header if identity else None,
                iap_answer=iap_answer,
                reached_upstream=self.reached_upstream,
                body_bytes=self._body_bytes,
                headers=without_secrets(self.request.headers.items()),
            )
        )


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return a copy without the headers that apply to a single connection."""
    kept = CIMultiDict(headers)
    named = {name.strip().lower() for name in kept.get("Connection", "").split(",")}
    for name in list(kept):
        if name.lower() in _HOP_BY_HOP | named:
            kept.popall(name, None)
    return kept


def _identity_page(account: Account) -> web.Response:
    name, number = f"accounts.google.com:{account.name}", f"accounts.google.com:{account.id}"
    return web.json_response(
        {"email": name, "sub": number}, headers={"X-Goog-IAP-Generated-Response": "true"}
    )
