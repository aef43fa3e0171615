"""Identity-Aware Proxy: lets requests through to the application, or answers them itself."""

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

from . import connection
from . import responses as answers
from .accounts import MANAGED_CLIENT_ID, Account
from .assertions import Assertions
from .faults import Fault, FaultKind
from .iap_authentication import (
    EMPTY_TOKEN,
    EXPIRED,
    Identity,
    Refusal,
    identify,
    may_enter,
)
from .request_log import SeenRequest, without_secrets
from .sign_in import CALLBACK_PATH, SignIn
from .state import CloudState

LARGEST_REQUEST = 32 * 1024 * 1024

_HOP_BY_HOP = {
    "connection",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class IapProxy:
    """Protects one application.

    Args:
        state: the cloud.
        assertions: tell the application who called.
        sign_in: for people with a browser.
        upstream: the application's origin.
    """

    def __init__(
        self, state: CloudState, assertions: Assertions, sign_in: SignIn, upstream: str
    ) -> None:
        self._state = state
        self._assertions = assertions
        self._sign_in = sign_in
        self._upstream = upstream.rstrip("/")
        self._session: aiohttp.ClientSession

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        application.cleanup_ctx.append(self._open_session)
        application.on_response_prepare.append(self._stamp)
        return application

    async def _open_session(self, application: web.Application) -> AsyncIterator[None]:
        # A connection kept alive can be closed by the application just when a POST goes out on
        # it; the proxy would then answer 502 where the real one does not.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as self._session:
            yield

    async def _stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Date"] = answers.http_date(self._state.now())
        response.headers["Server"] = "Google Frontend"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        visit = _Visit(self._state, request)
        if self._state.delay:
            await asyncio.sleep(self._state.delay)
        refusal: Refusal | None = None
        try:
            visit.identity = self._identify(request)
        except Refusal as reason:
            refusal = reason
        if (fault := self._strike(request, "answer", "reset_before")) is not None:
            if fault.kind == "reset_before":
                return visit.reset()
            return visit.end(_ordered(fault, visit.identity), iap_answer=fault.from_iap)
        if request.path == CALLBACK_PATH:
            return visit.end(await self._finish_sign_in(request), iap_answer=True)
        mode = request.query.get("gcp-iap-mode")
        if mode == "CLEAR_LOGIN_COOKIE":
            return visit.end(self._sign_in.sign_out(request.path), iap_answer=True)
        if visit.identity is None:
            return visit.end(self._refuse(request, refusal), iap_answer=True)
        if mode == "IDENTITY":
            return visit.end(_identity_page(visit.identity.account), iap_answer=True)
        if not may_enter(self._state, visit.identity.account):
            text = f"{answers.APP_NAME}: Access denied. For user {visit.identity.account.name}."
            return visit.end(answers.iap_answer(403, text), iap_answer=True)
        if (request.content_length or 0) > LARGEST_REQUEST:
            return visit.end(answers.too_large())
        return await self._let_in(visit, visit.identity)

    def _identify(self, request: web.Request) -> Identity:
        try:
            return identify(self._state, request.headers, request.host, request.path)
        except Refusal:
            account = self._sign_in.signed_in(request.cookies)
            if account is None:
                raise
            return Identity(account)

    def _strike(self, request: web.Request, *kinds: FaultKind) -> Fault | None:
        return self._state.faults.strike("iap", request.method, request.raw_path, kinds)

    async def _finish_sign_in(self, request: web.Request) -> web.Response:
        try:
            return await self._sign_in.finish(request)
        except web.HTTPException as error:
            return answers.iap_answer(error.status, error.text or error.reason)

    def _refuse(self, request: web.Request, refusal: Refusal | None) -> web.Response:
        text = str(refusal)
        accept = request.headers.get("Accept", "*/*")
        can_redirect = (
            request.method == "GET"
            and text == EMPTY_TOKEN
            and ("*/*" in accept or "text/html" in accept)
            and request.headers.get("X-Requested-With") != "XMLHttpRequest"
        )
        if not can_redirect:
            return answers.iap_answer(401, text)
        is_browser = (
            request.headers.get("Sec-Fetch-Mode") == "navigate" or "text/html" in accept.lower()
        )
        location = (
            self._sign_in.page_url(request.raw_path) if is_browser else self._google_sign_in()
        )
        nonce = f"GCP_IAP_XSRF_NONCE_{secrets.token_urlsafe(12)}=1"
        cookie = f"{nonce}; path=/; Max-Age=600; Secure; HttpOnly; SameSite=none"
        return answers.iap_answer(302, text, {"Location": location, "Set-Cookie": cookie})

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
        fault = self._strike(request, *kinds)
        if fault is not None and fault.kind == "reject_midway":
            return await self._reject_midway(visit, identity)
        return await self._forward(visit, identity, fault)

    async def _reject_midway(self, visit: _Visit, identity: Identity) -> web.Response:
        half = (visit.request.content_length or 0) // 2
        async for _ in visit.body(up_to=half):
            pass
        if identity.token_kind == "signed_jwt":  # noqa: S105 - a kind
            # Signed again within the same second it would be the very same text.
            await asyncio.sleep(max(0.0, math.floor(identity.signed_at) + 1.0 - time.time()))
        self._state.mint.revoke(identity.token)
        answer = answers.iap_answer(401, EXPIRED)
        # aiohttp goes on reading the rest for a while, so that a client that sends all of its
        # body before it reads gets to see the answer.
        answer.force_close()
        return visit.end(answer, iap_answer=True)

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
                    if fault.kind == "reset_after":
                        return visit.reset()
                    return visit.end(_ordered(fault, identity), iap_answer=fault.from_iap)
                return await self._pass_on(visit, answer, cut=fault is not None)
        except aiohttp.ClientError as error:
            visit.reached_upstream = not isinstance(error, aiohttp.ClientConnectorError)
            if visit.too_large:
                return visit.end(answers.too_large())
            if visit.ended:
                # The application broke off in the middle of its answer, and so must we.
                return connection.reset(request)
            return visit.end(answers.front_end_error(502))

    async def _pass_on(
        self, visit: _Visit, answer: aiohttp.ClientResponse, *, cut: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(_end_to_end(answer.headers))
        visit.note(status=0 if cut else answer.status)
        if cut:
            body = await answer.read()
            await response.prepare(visit.request)
            await response.write(body[: len(body) // 2])
            await connection.cut(visit.request)
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
        headers["X-Goog-IAP-JWT-Assertion"] = self._assertions.sign(account)
        headers["X-Goog-Authenticated-User-Email"] = f"accounts.google.com:{account.name}"
        headers["X-Goog-Authenticated-User-Id"] = f"accounts.google.com:{account.id}"
        return headers


class _Visit:
    """One request on its way through, and the one entry in the record that it makes."""

    def __init__(self, state: CloudState, request: web.Request) -> None:
        self.request = request
        self.identity: Identity | None = None
        self.reached_upstream = False
        self.too_large = False
        self.ended = False
        self._state = state
        self._came_in = time.time()
        self._body_bytes = 0

    async def body(self, up_to: float = math.inf) -> AsyncIterator[bytes]:
        """Yield the request's body, counting it, until at least `up_to` bytes have come."""
        async for chunk in self.request.content.iter_any():
            self._body_bytes += len(chunk)
            if self._body_bytes > LARGEST_REQUEST:
                self.too_large = True
                raise ValueError("the request is larger than App Engine takes")
            yield chunk
            if self._body_bytes >= up_to:
                return

    def end(self, answer: web.Response, *, iap_answer: bool = False) -> web.Response:
        self.note(answer.status, iap_answer=iap_answer)
        return answer

    def reset(self) -> web.Response:
        self.note(status=0)
        return connection.reset(self.request)

    def note(self, status: int, *, iap_answer: bool = False) -> None:
        """Enter the visit in the record: before the answer leaves, so that its reader finds it."""
        self.ended = True
        identity = self.identity
        # The callback's query holds a code that signs in.
        is_callback = self.request.path == CALLBACK_PATH
        self._state.requests.append(
            SeenRequest(
                time=self._came_in,
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
    """Return a copy without the headers that concern one connection only."""
    kept = CIMultiDict(headers)
    named = {name.strip().lower() for name in kept.get("Connection", "").split(",")}
    for name in list(kept):
        if name.lower() in _HOP_BY_HOP | named:
            kept.popall(name, None)
    return kept


def _ordered(fault: Fault, identity: Identity | None) -> web.Response:
    return answers.ordered_answer(
        fault.status,
        body=fault.body,
        from_iap=fault.from_iap,
        retry_after=fault.retry_after,
        user=identity.account.name if identity else "",
    )


def _identity_page(account: Account) -> web.Response:
    name, number = f"accounts.google.com:{account.name}", f"accounts.google.com:{account.id}"
    return web.json_response(
        {"email": name, "sub": number}, headers={"X-Goog-IAP-Generated-Response": "true"}
    )
