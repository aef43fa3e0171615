"""``mlflow-iap proxy``: a local URL of the server for programs that cannot get a token."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import click


@click.command()
@click.option("--port", default=0, help="Port on 127.0.0.1; 0 for a free port.")
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    help="Listen on a Unix socket at this path instead of a port. Only you can connect to it.",
)
@click.argument("url", required=False)
def proxy(port: int, path: Path | None, url: str | None) -> None:
    """Give curl, R, Java or a browser on this machine access to the server.

    URL is the URL of the server. Default: MLFLOW_TRACKING_URI. Requests to the printed address are
    sent to the server with your token, and are retried like this package's own. Whoever knows the
    address can act in your name, so it contains a secret:

    \b
        mlflow-iap proxy --port 5000
        curl http://127.0.0.1:5000/SECRET/version

    A Unix socket needs no secret:

    \b
        mlflow-iap proxy --socket ~/mlflow.sock
        curl --unix-socket ~/mlflow.sock http://localhost/version
    """
    from aiohttp import web

    from ..errors import IAPError
    from ..iap.auth import IAPAuth
    from ..iap.proxy import IAPProxy

    secret = None if path else secrets.token_urlsafe(24)
    try:
        application = IAPProxy(
            IAPAuth(url or os.environ.get("MLFLOW_TRACKING_URI", "")), secret
        ).application()
        listener = _private_socket(path) if path else socket.create_server(("127.0.0.1", port))
    except IAPError as error:
        raise click.ClickException(error.message) from None
    except OSError as error:
        raise click.ClickException(
            f"{path or f'Port {port}'} cannot be used: {error.strerror}. Choose another one."
        ) from None
    address = path or f"http://127.0.0.1:{listener.getsockname()[1]}/{secret}"
    try:
        with listener:
            click.echo(address)
            web.run_app(
                application, sock=listener, print=None, access_log=None, shutdown_timeout=1.0
            )
    finally:
        if path:
            path.unlink(missing_ok=True)


def _private_socket(path: Path) -> socket.socket:
    """Return a socket that listens at a path, for this user only."""
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen()
    return listener
