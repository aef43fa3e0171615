"""`LocalCloud`: runs all servers on one thread, and returns the settings for their clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from .accounts import DEFAULT_CUSTOM_CLIENT_ID
from .assertions import AUDIENCE, sign_assertion
from .certificates import tls_context
from .connect_proxy import GOOGLE_NAMES, ConnectProxy
from .credential_files import CredentialFiles
from .echo import echo_application
from .faults import Fault, FaultKind, Place
from .google_endpoints import google_application
from .iap_proxy import IapProxy
from .keys import EcKey
from .sign_in import SignIn
from .sockets import Listener
from .state import CloudState

_MAX_LINE_BYTES = 65_536  # of a URL or a header, as for the MLflow server behind IAP
_HOST = "127.0.0.1"


class LocalCloud(CloudState):
    """Google Cloud on this machine: an application behind Identity-Aware Proxy, and its accounts.

    Examples:
        ```python
        with MlflowServer(folder) as server, LocalCloud(server.url) as cloud:
            os.environ.update(cloud.environment())
            cloud.fault("answer", status=503)
            experiments = IAPMlflowClient().search_experiments()
            print([seen.status for seen in cloud.requests])  # [503, 401, 200]
        ```

    The fault affects the first request, IAP asks for a token after the second one, and the third
    succeeds. All servers listen on 127.0.0.1 and run on one thread of this process. Any thread may
    change the attributes of `CloudState` and inject faults while they run.

    Args:
        upstream: origin of the application. Default: an application that responds to everything
            with 200 and JSON: `method`, `path`, `headers` (lower-case names) and `body_bytes`.
        token_lifetime: how long tokens are valid, in seconds. Default: an hour, as at Google.
        client_id: the OAuth client that Identity-Aware Proxy accepts as audience of ID tokens.
            Default: a client of the project. None for the Google-managed client, the default of
            new proxies since 2025: it accepts JWTs that service accounts sign, access tokens, and
            ID tokens for `programmatic_clients`.
        folder: where key files and certificates are written; created with mode 0700. Default: a
            temporary folder, which `stop` removes.
        port: port of the protected application; 0 for a free one.
    """

    def __init__(
        self,
        upstream: str | None = None,
        *,
        token_lifetime: float = 3600.0,
        client_id: str | None = DEFAULT_CUSTOM_CLIENT_ID,
        folder: str | os.PathLike[str] | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(token_lifetime=token_lifetime, client_id=client_id)
        self._upstream = upstream
        self._given_folder = None if folder is None else Path(folder)
        self._port = port
        self._running: _Running | None = None

    def __enter__(self) -> LocalCloud:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all servers, and return when they listen.

        Raises:
            OSError: if `port` is in use or `folder` cannot be written.
            RuntimeError: if it is already running.
        """
        if self._running is not None:
            raise RuntimeError("This LocalCloud is already running.")
        running = _Running(self, self._upstream, self._given_folder, self._port)
        running.start()
        self._running = running

    def stop(self) -> None:
        """Stop all servers without waiting for requests, and remove the temporary folder."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    @property
    def url(self) -> str:
        """Origin of the protected application, such as `http://127.0.0.1:8080`."""
        return self._now_running().url

    @property
    def google_url(self) -> str:
        """Origin of the Google endpoints over plain HTTP."""
        return self._now_running().google_url

    @property
    def assertion_keys_url(self) -> str:
        """URL of Identity-Aware Proxy's public keys: a JSON object with a PEM for each key id."""
        return f"{self.google_url}/iap/verify/public_key"

    def assertion(self, account: str = CloudState.trainer, **claims: Any) -> str:
        """Return the assertion that the application gets with a request of an account.

        Args:
            account: its e-mail; if unknown, a service account is created.
            **claims: override the usual claims; None removes one.
        """
        return sign_assertion(self, self.accounts.service_account(account), **claims)

    def rotate_assertion_key(self) -> None:
        """Make Identity-Aware Proxy sign with a new key; the old ones stay published."""
        self.assertion_keys = [EcKey(), *self.assertion_keys]

    def server_environment(self) -> dict[str, str]:
        """Return the environment variables of a server that verifies this cloud's assertions."""
        return {
            "MLFLOW_IAP_AUDIENCE": AUDIENCE,
            "MLFLOW_IAP_KEYS_URL": self.assertion_keys_url,
        }

    def key_file(self, account: str = CloudState.trainer) -> Path:
        """Write a service account's key file. If unknown, the account is created."""
        return self._now_running().files.key(account)

    def delete_key(self, account: str = CloudState.trainer) -> None:
        """Delete a service account's key, so that its key file stops working."""
        self.accounts.delete_key(account)

    def impersonated_file(
        self,
        target: str = CloudState.trainer,
        source: Literal["user", "service_account"] = "user",
    ) -> Path:
        """Write Application Default Credentials that impersonate a service account.

        Args:
            target: the service account; for all but `trainer`, call `grant` first.
            source: who impersonates it: `user`, or `service_account` for `trainer` with its key.
        """
        return self._now_running().files.impersonated(target, source)

    def user_file(self) -> Path:
        """Write what `gcloud auth application-default login` writes for `user`."""
        return self._now_running().files.user()

    def desktop_file(self, allowlisted: bool = True) -> Path:
        """Write the credentials of `user`, signed in with an OAuth client for desktop apps.

        Args:
            allowlisted: whether `programmatic_clients` includes that client from now on.
        """
        return self._now_running().files.desktop(allowlisted=allowlisted)

    def federation_file(self, impersonate: str | None = CloudState.trainer) -> Path:
        """Write the credentials of a workload outside Google Cloud.

        Args:
            impersonate: the service account to impersonate; None for no impersonation.
        """
        return self._now_running().files.federation(impersonate)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a client with `trainer`'s key file."""
        variables = {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_AUTH": "iap",
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.key_file()),
        }
        if self.client_id is not None:
            variables["MLFLOW_IAP_CLIENT_ID"] = self.client_id
        return variables

    def google_environment(self) -> dict[str, str]:
        """Return the environment variables that send requests to Google to this machine instead."""
        running = self._now_running()
        variables = {"HTTPS_PROXY": running.proxy_url, "NO_PROXY": "127.0.0.1,localhost"}
        return {
            **variables,
            **{name.lower(): value for name, value in variables.items()},
            "REQUESTS_CA_BUNDLE": str(running.certificate_file),
        }

    def metadata_environment(self) -> dict[str, str]:
        """Return the environment variables of a virtual machine that runs as `vm_account`.

        google-auth reads them when it is imported, so they work only in a new process, in which
        GOOGLE_APPLICATION_CREDENTIALS must not be set.
        """
        return self._metadata_at(self.google_url.removeprefix("http://"), seconds=10)

    def no_metadata_environment(self) -> dict[str, str]:
        """Return the environment variables of a machine without a metadata server."""
        return self._metadata_at(f"{_HOST}:{self._now_running().refusing_port}", seconds=1)

    def revoke_tokens(self) -> None:
        """Revoke every token issued or signed so far: they are rejected as expired.

        Takes up to a second, because it waits for the next full second: a JWT that is signed twice
        within one second has the same text.
        """
        self.mint.revoke_all()

    def revoke_refresh_tokens(self) -> None:
        """Revoke all refresh tokens issued so far, as when the user changes the password."""
        for token in list(self.mint.refresh_tokens.values()):
            token.revoked = True

    def grant(self, email: str, *, to: str) -> None:
        """Grant `email` roles/iam.serviceAccountTokenCreator on the service account `to`."""
        self.accounts.grant(email, to=to)

    def deny(self, email: str, *, on: str) -> None:
        """Revoke `email`'s roles/iam.serviceAccountTokenCreator on the service account `on`."""
        self.accounts.deny(email, on=on)

    def fault(
        self,
        kind: FaultKind,
        *,
        path: str = "",
        method: str | None = None,
        skip: int = 0,
        times: int = 1,
        status: int = 503,
        retry_after: float | None = None,
        body: str | None = None,
        from_iap: bool = False,
        where: Place = "iap",
    ) -> None:
        """Inject a fault into the next matching requests.

        Args:
            kind: `answer` responds with `status` and does not call the application.
                `answer_after` calls it, then responds with `status` instead.
                `reset_before` resets the connection and does not call the application.
                `reset_after` calls it, then resets the connection.
                `reject_midway` reads about half of a request's body, then revokes its token and
                responds that it has expired.
                `reset_midway` closes the connection after about half of the response's body.
                Only `answer` and `reset_before` affect requests without valid credentials.
            path: part of the path or query of matching requests.
            method: method of matching requests; None for any.
            skip: how many matching requests to let pass first.
            times: how many matching requests to affect; 0 for all.
            status: status of the response. Default: 503, which clients retry.
            retry_after: seconds in the response's Retry-After header; None for no such header.
            body: body of the response. Default: what the real service says with this status.
            from_iap: whether to mark the response as Identity-Aware Proxy's own.
            where: `iap`, or `google` for Google's other endpoints.

        Raises:
            ValueError: if `kind` or `where` is unknown, or `kind` is not possible at `where`.
        """
        self.faults.append(
            Fault(kind, path, method, skip, times, status, retry_after, body, from_iap, where)
        )

    def fault_rate(self, kind: FaultKind, rate: float, *, seed: int = 0, **filters: Any) -> None:
        """Inject a fault into a random share of all matching requests.

        Args:
            kind: see `fault`.
            rate: the share, from 0.0 to 1.0.
            seed: seed of the random choice; the same seed chooses the same requests.
            **filters: the other arguments of `fault`.
        """
        self.faults.append(Fault(kind, rate=rate, seed=seed, **{"times": 0, **filters}))

    def clear_faults(self) -> None:
        """Remove all faults."""
        self.faults.clear()

    def forget(self) -> None:
        """Clear `requests`, `google_requests` and `tokens`."""
        self.requests.clear()
        self.google_requests.clear()
        self.tokens.clear()

    def _metadata_at(self, address: str, *, seconds: int) -> dict[str, str]:
        return {
            "GCE_METADATA_HOST": address,
            "GCE_METADATA_IP": address,
            "GCE_METADATA_DETECT_RETRIES": "1",
            "GCE_METADATA_TIMEOUT": str(seconds),
            # An empty folder, so that the developer's own gcloud sign-in is not used.
            "CLOUDSDK_CONFIG": str(self._now_running().empty_folder),
        }

    def _now_running(self) -> _Running:
        if self._running is None:
            raise RuntimeError("This LocalCloud is not running: use it as `with LocalCloud(): ...`")
        return self._running


class _Running:
    """The sockets, the thread and the files of all servers, from `start` to `stop`."""

    def __init__(
        self, cloud: LocalCloud, upstream: str | None, folder: Path | None, port: int
    ) -> None:
        self._cloud = cloud
        self._upstream = upstream
        self._port = port
        self._resources = contextlib.ExitStack()
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="local-cloud-")
            folder = Path(self._resources.enter_context(temporary))
        # Absolute, because processes in other folders get the paths of its files.
        self._folder = folder.resolve()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._failure: BaseException | None = None
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local-cloud", daemon=True)

    def start(self) -> None:
        try:
            self._prepare()
            self._thread.start()
            self._settled.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self._resources.close()
            raise

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._resources.close()

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.empty_folder = self._folder / "no-gcloud"
        self.empty_folder.mkdir(mode=0o700, exist_ok=True)
        self._listeners = {
            name: self._listen(self._port if name == "iap" else 0)
            for name in ("iap", "google", "google_tls", "proxy", "echo")
        }
        # Bound but not listening, so the port stays taken and refuses every connection.
        refusing = self._resources.enter_context(socket.socket())
        refusing.bind((_HOST, 0))
        self.refusing_port: int = refusing.getsockname()[1]
        self.url, self.google_url, self.proxy_url, echo_url = (
            f"http://{_HOST}:{self._port_of(name)}" for name in ("iap", "google", "proxy", "echo")
        )
        self._upstream = self._upstream or echo_url
        self._context, self.certificate_file = tls_context(self._folder, GOOGLE_NAMES)
        self._sign_in = SignIn(self._cloud, self.url, self.google_url)
        self.files = CredentialFiles(self._cloud, self._folder, self.google_url)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again by start()
            self._failure = error
        finally:
            self._settled.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        assert self._upstream is not None  # noqa: S101 - for the type checker
        iap = IapProxy(self._cloud, self._sign_in, self._upstream)
        google = google_application(self._cloud, self._sign_in)
        proxy = ConnectProxy(self._port_of("google_tls"))
        async with contextlib.AsyncExitStack() as servers:
            await self._site(servers, echo_application(), {"echo": None})
            await self._site(servers, iap.application(), {"iap": None})
            await self._site(servers, google, {"google": None, "google_tls": self._context})
            await servers.enter_async_context(proxy.listening(self._listeners["proxy"]))
            self._settled.set()
            await self._stopping.wait()

    async def _site(
        self,
        servers: contextlib.AsyncExitStack,
        application: web.Application,
        listeners: dict[str, ssl.SSLContext | None],
    ) -> None:
        # Compressed bodies stay compressed, and stopping does not wait for requests.
        runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=0.1,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
        )
        await runner.setup()
        servers.push_async_callback(runner.cleanup)
        for name, context in listeners.items():
            await web.SockSite(runner, self._listeners[name], ssl_context=context).start()

    def _listen(self, port: int) -> socket.socket:
        listener = Listener(socket.create_server((_HOST, port), backlog=512))
        self._resources.callback(listener.close_accepted)
        return self._resources.enter_context(listener)

    def _port_of(self, name: str) -> int:
        port: int = self._listeners[name].getsockname()[1]
        return port
