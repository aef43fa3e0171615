"""Sign-in with a browser: a page with a button per account, then a session cookie."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from aiohttp import web

from .accounts import Account
from .keys import EcKey
from .state import CloudState

PAGE_PATH = "/signin"
CALLBACK_PATH = "/_gcp_gatekeeper/authenticate"
_CODE_LIFETIME = 60  # seconds
# In seconds. A working day, so that nobody has to sign in again while training runs.
_SESSION_LIFETIME = 12 * 3600

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sign in - local Google Cloud</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 12vh auto; padding: 0 1rem;
  color: #202124; background: #fff }}
h1 {{ font-size: 1.4rem; font-weight: 500 }}
button {{ display: block; width: 100%; margin: .6rem 0; padding: .8rem 1rem; font: inherit;
  text-align: left; color: inherit; background: #fff; border: 1px solid #dadce0;
  border-radius: .5rem; cursor: pointer }}
button:hover, button:focus {{ background: #f1f3f4 }}
p {{ color: #5f6368 }}
</style>
</head>
<body>
<h1>Choose an account</h1>
<p>to continue to {application}</p>
<form method="post" action="{action}">
<input type="hidden" name="continue" value="{target}">
{buttons}
</form>
<p>This page stands in for Google's on this machine. It asks for no password.</p>
</body>
</html>
"""
_BUTTON = '<button name="account" value="{name}">{name}</button>'


class SignIn:
    """The sign-in to an application: the page, the one-time code, the session cookie.

    Args:
        state: the cloud.
        origin: origin of the application, such as `http://127.0.0.1:8080`; the only one to which
            it redirects.
        google_url: origin of the page.
    """

    def __init__(self, state: CloudState, origin: str, google_url: str) -> None:
        self._state = state
        self._key = EcKey()  # signs codes and sessions
        self._origin = origin
        self._google_url = google_url
        self._used_codes: set[str] = set()
        # Browsers share cookies between ports, so each cloud needs its own name.
        self._cookie = f"GCP_IAP_SESSION_{urlsplit(origin).port}"

    def page_url(self, path: str) -> str:
        """Return the URL of the sign-in page that leads back to `path`."""
        return f"{self._google_url}{PAGE_PATH}?continue={quote(self._origin + path, safe='')}"

    async def show_page(self, request: web.Request) -> web.Response:
        target = self._own_target(request.query.get("continue", ""))
        names = (self._state.user, self._state.trainer)
        page = _PAGE.format(
            application=html.escape(self._origin),
            action=PAGE_PATH,
            target=html.escape(target),
            buttons="\n".join(_BUTTON.format(name=html.escape(name)) for name in names),
        )
        # Without form-action: browsers would apply it to the redirect after the form too.
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        return web.Response(
            text=page,
            content_type="text/html",
            charset="UTF-8",
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
        )

    async def choose_account(self, request: web.Request) -> web.Response:
        form = await request.post()
        target = self._own_target(str(form.get("continue", "")))
        name = str(form.get("account", ""))
        if name not in (self._state.user, self._state.trainer):
            raise web.HTTPBadRequest(text="There is no such account to choose.")
        code = self._sign(name, "code", _CODE_LIFETIME)
        location = f"{self._origin}{CALLBACK_PATH}?code={code}&continue={quote(target, safe='')}"
        return web.Response(status=303, headers={"Location": location})

    async def finish(self, request: web.Request) -> web.Response:
        """Exchange a one-time code for a session at the application's origin."""
        target = self._own_target(request.query.get("continue", ""))
        code = request.query.get("code", "")
        try:
            account = self._read(code, "code")
        except ValueError:
            raise web.HTTPBadRequest(text="This sign-in has expired. Go back and retry.") from None
        self._used_codes.add(code)
        answer = web.Response(status=302, headers={"Location": target})
        answer.set_cookie(
            self._cookie,
            self._sign(account.name, "session", _SESSION_LIFETIME),
            max_age=_SESSION_LIFETIME,
            httponly=True,
            samesite="Lax",
        )
        return answer

    def sign_out(self, path: str) -> web.Response:
        answer = web.Response(status=302, headers={"Location": self.page_url(path)})
        answer.del_cookie(self._cookie, httponly=True, samesite="Lax")
        return answer

    def signed_in(self, cookies: Mapping[str, str]) -> Account | None:
        """Return who is signed in with this browser, if anybody."""
        try:
            return self._read(cookies.get(self._cookie, ""), "session")
        except ValueError:
            return None

    def _own_target(self, target: str) -> str:
        """Return `target`, or raise a 400 if it is not at the application's origin."""
        if target != self._origin and not target.startswith(f"{self._origin}/"):
            raise web.HTTPBadRequest(text="continue must be an address of this application.")
        if any(character in target for character in "\\\r\n\t"):
            raise web.HTTPBadRequest(text="continue must be a plain address.")
        return target

    def _sign(self, name: str, purpose: str, lifetime: int) -> str:
        # The times are by this machine's clock, not Google's, because only this process reads them.
        now = int(time.time())
        audience = f"{self._origin}/{purpose}"
        return self._key.sign({"sub": name, "aud": audience, "iat": now, "exp": now + lifetime})

    def _read(self, token: str, purpose: str) -> Account:
        if token in self._used_codes:
            raise ValueError("the code was used before")
        claims = self._key.verify(token, audience=f"{self._origin}/{purpose}")
        return self._state.accounts[claims["sub"]]
