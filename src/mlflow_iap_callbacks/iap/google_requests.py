"""The requests that google-auth sends to Google's endpoints."""

from __future__ import annotations

from typing import Any

import requests
from google.auth.transport.requests import Request
from requests.adapters import HTTPAdapter


def google_request() -> Request:
    """Return what google-auth sends its requests with.

    No proxy is used for plain http, because it would read the tokens. Only servers on this machine
    use plain http, such as the metadata server.
    """
    session = requests.Session()
    session.mount("http://", _DirectAdapter())
    return Request(session)


class _DirectAdapter(HTTPAdapter):
    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super().send(*args, **{**kwargs, "proxies": {}})
