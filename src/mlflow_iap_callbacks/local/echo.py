"""The default application behind Identity-Aware Proxy: it returns what it received."""

from __future__ import annotations

from aiohttp import web


def echo_application() -> web.Application:
    """Return an application that responds with method, path, headers and body_bytes as JSON.

    Header names are lower-case; `path` includes the query.
    """
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", _echo)
    return application


async def _echo(request: web.Request) -> web.Response:
    body_bytes = 0
    try:
        async for chunk in request.content.iter_any():
            body_bytes += len(chunk)
    except ConnectionError:
        return web.Response(status=400)  # the client is gone, so nobody reads the response
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body_bytes": body_bytes,
        }
    )
