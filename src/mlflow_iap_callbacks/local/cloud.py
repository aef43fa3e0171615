"""`LocalCloud`: all servers on one thread, and what a client needs to find them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from aiohttp import web

from .accounts import DEFAULT_CUSTOM_CLIENT_ID
from .assertions import AUDIENCE, Assertions
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
from .token_endpoint import TokenEndpoint

_HOST = "127.0.0.1"


class LocalCloud(CloudState):
    """Google Cloud on this machine: an application behind Identity-Aware Proxy, and its accounts.

        with LocalCloud("http://127.0.0.1:5000") as cloud:
            os.environ.update(cloud.environment())
            ...

    All servers listen on 127.0.0.1 and run on one thread of this process. The attributes of
    `CloudState` may be changed, and faults ordered, from any thread while they run.

    Args:
        upstream: origin of the application; None for one that answers 200 and JSON with
            `method`, `path`, `headers` (lower-case names) and `body_bytes`.
        token_lifetime: seconds for which a token holds; 3600 as at Google.
        client_id: the OAuth client that Identity-Aware Proxy accepts as audience of ID tokens;
            None for the client that Google manages, with which only JWTs signed by service
            accounts, access tokens and `programmatic_clients` pass.
        folder: where key files and the certificate authority are written, created with mode 0700;
            None for a temporary one that `stop` removes.
        port: of the protected application; 0 for a free one.
    """

    def __init__(
        self,
        upstream: str | None = None,
        *,
        token_lifetime: float = 3600.0,
        client_id: str | None = DEFAULT_CUSTOM_CLIENT_ID,
        folder: Path | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(token_lifetime=token_lifetime, client_id=client_id)
        self._upstream = upstream
        self._given_folder = folder
        self._port = port
        self._running: _Running | None = None

    def __enter__(self) -> LocalCloud:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all servers and return when each of them listens.

        Raises:
            OSError: if `port` is taken or `folder` cannot be written.
            RuntimeError: if it is running already.
        """
        if self._running is not None:
            raise RuntimeError("This LocalCloud is running already.")
        running = _Running(self, self._upstream, self._given_folder, self._port)
        running.start()
        self._running = running

    def stop(self) -> None:
        """Stop all servers, break off what is under way, remove a temporary folder."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    @property
    def url(self) -> str:
        """Origin of the protected application."""
        return self._now_running().url

    @property
    def google_url(self) -> str:
        """Origin of the Google endpoints over plain HTTP."""
        return self._now_running().google_url

    @property
    def assertion_keys_url(self) -> str:
        """Where the public keys of Identity-Aware Proxy are, as PEM by key id."""
        return f"{self.google_url}/iap/verify/public_key"

    def assertion(self, account: str = CloudState.trainer, **claims: Any) -> str:
        """Return what Identity-Aware Proxy would tell the application about an account.

        Args:
            account: its e-mail; a service account is created where it is unknown.
            **claims: replace those that the assertion would have; None takes one away.
        """
        return self._now_running().assertions.sign(self.accounts.service_account(account), **claims)

    def rotate_assertion_key(self) -> None:
        """Let Identity-Aware Proxy sign by a new key; the old ones stay published."""
        self.assertion_keys = [EcKey(), *self.assertion_keys]

    def server_environment(self) -> dict[str, str]:
        """Return the variables of a server that checks this cloud's assertions."""
        return {
            "MLFLOW_IAP_AUDIENCE": AUDIENCE,
            "MLFLOW_IAP_KEYS_URL": self.assertion_keys_url,
        }

    def key_file(self, account: str = CloudState.trainer) -> Path:
        """Write a service account's key file; the account is created where it is unknown."""
        return self._now_running().files.key(account)

    def delete_key(self, account: str = CloudState.trainer) -> None:
        """Delete a service account's key: who has its file gets in no more."""
        self.accounts.delete_key(account)

    def impersonated_file(
        self,
        target: str = CloudState.trainer,
        source: Literal["user", "service_account"] = "user",
    ) -> Path:
        """Write Application Default Credentials that act as `target`.

        Args:
            target: the service account; `grant` its use for others than `trainer`.
            source: who acts: `user`, or `trainer` by its key.
        """
        return self._now_running().files.impersonated(target, source)

    def user_file(self) -> Path:
        """Write what `gcloud auth application-default login` writes for `user`."""
        return self._now_running().files.user()

    def desktop_file(self, allowlisted: bool = True) -> Path:
        """Write the credentials of `user`, signed in by an OAuth client of the desktop kind.

        Args:
            allowlisted: whether that client is one of `programmatic_clients` from now on.
        """
        return self._now_running().files.desktop(allowlisted=allowlisted)

    def federation_file(self, impersonate: str | None = CloudState.trainer) -> Path:
        """Write the credentials of a workload outside Google Cloud.

        Args:
            impersonate: the service account that it acts as; None for none.
        """
        return self._now_running().files.federation(impersonate)

    def environment(self) -> dict[str, str]:
        """Return the variables of a client that has `trainer`'s key file."""
        variables = {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_AUTH": "iap",
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.key_file()),
        }
        if self.client_id is not None:
            variables["MLFLOW_IAP_CLIENT_ID"] = self.client_id
        return variables

    def google_environment(self) -> dict[str, str]:
        """Return the variables that lead requests for Google's host names to this machine."""
        running = self._now_running()
        variables = {"HTTPS_PROXY": running.proxy_url, "NO_PROXY": "127.0.0.1,localhost"}
        return {
            **variables,
            **{name.lower(): value for name, value in variables.items()},
            "REQUESTS_CA_BUNDLE": str(running.authority_file),
        }

    def metadata_environment(self) -> dict[str, str]:
        """Return the variables of a virtual machine that runs as `vm_account`.

        google-auth reads them when it is imported, so they are for a new process; in it
        GOOGLE_APPLICATION_CREDENTIALS must not be set.
        """
        return self._metadata_at(self.google_url.removeprefix("http://"), seconds=10)

    def no_metadata_environment(self) -> dict[str, str]:
        """Return the variables of a machine that is none of Google's, found out at once."""
        return self._metadata_at(f"{_HOST}:{self._now_running().refusing_port}", seconds=1)

    def revoke_tokens(self) -> None:
        """Let every token issued or signed until now be answered as an expired one.

        Takes up to a second: a JWT that is signed twice within one second is the same text, so
        the next second is waited for.
        """
        self.mint.revoke_all()

    def revoke_refresh_tokens(self) -> None:
        """Revoke all refresh tokens given out, as when a user's password is changed."""
        for token in list(self.mint.refresh_tokens.values()):
            token.revoked = True

    def grant(self, email: str, *, to: str) -> None:
        """Give `email` roles/iam.serviceAccountTokenCreator on the service account `to`."""
        self.accounts.grant(email, to=to)

    def deny(self, email: str, *, on: str) -> None:
        """Take roles/iam.serviceAccountTokenCreator on the service account `on` from `email`."""
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
        """Order a fault.

        Args:
            kind: `answer`: `status`, the application is not called. `answer_after`: the
                application does its work, then its answer is replaced by `status`.
                `reset_before`: the connection is reset before the application is called.
                `reset_after`: it is reset after the application has done its work.
                `reject_midway`: after about half of a request's body the token that it carries
                is revoked and answered as expired. `reset_midway`: the connection ends after
                about half of the answer's body. Only `answer` and `reset_before` strike requests
                that Identity-Aware Proxy refuses.
            path: part of the path, or of the query, of the requests that are struck.
            method: their method; None for any.
            skip: how many of them pass first.
            times: how often it strikes; 0 for without end.
            status: of the answer.
            retry_after: seconds in the answer's Retry-After; None for no such header.
            body: the answer's; None for what the real one says with this status.
            from_iap: whether Identity-Aware Proxy marks the answer as its own.
            where: `iap`, or `google` for the other endpoints.

        Raises:
            ValueError: if `kind` or `where` is unknown, or `kind` not possible at `where`.
        """
        self.faults.add(
            Fault(
                kind,
                path=path,
                method=method,
                skip=skip,
                times=times,
                status=status,
                retry_after=retry_after,
                body=body,
                from_iap=from_iap,
                where=where,
            )
        )

    def fault_rate(self, kind: FaultKind, rate: float, *, seed: int = 0, **filters: Any) -> None:
        """Order a fault that strikes a share of the matching requests, without end.

        Args:
            kind: as for `fault`.
            rate: the share, from 0.0 to 1.0.
            seed: the same seed strikes the same ones again.
            **filters: the other arguments of `fault`.
        """
        self.faults.add(Fault(kind, rate=rate, seed=seed, **{"times": 0, **filters}))

    def clear_faults(self) -> None:
        """Forget all faults ordered."""
        self.faults.clear()

    def forget(self) -> None:
        """Empty `requests`, `google_requests` and `tokens`."""
        self.requests.clear()
        self.google_requests.clear()
        self.tokens.clear()

    def _metadata_at(self, address: str, *, seconds: int) -> dict[str, str]:
        return {
            "GCE_METADATA_HOST": address,
            "GCE_METADATA_IP": address,
            "GCE_METADATA_DETECT_RETRIES": "1",
            "GCE_METADATA_TIMEOUT": str(seconds),
            # An empty folder, lest the developer's own sign-in by gcloud is found.
            "CLOUDSDK_CONFIG": str(self._now_running().empty_folder),
        }

    def _now_running(self) -> _Running:
        if self._running is None:
            raise RuntimeError("This LocalCloud is not running: use it as `with LocalCloud(): ...`")
        return self._running


class _Running:
    """One run of all servers: sockets, thread, files; made by `start`, gone with `stop`."""

    def __init__(
        self, cloud: LocalCloud, upstream: str | None, folder: Path | None, port: int
    ) -> None:
        self._cloud = cloud
        self._upstream = upstream
        self._port = port
        self._resources = contextlib.ExitStack()
        # Absolute: the variables that name files in it are for processes that run anywhere.
        self._folder = folder.resolve() if folder else self._temporary_folder()
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
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._resources.close()

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.empty_folder = self._folder / "no-gcloud"
        self.empty_folder.mkdir(mode=0o700, exist_ok=True)
        self._listeners = {
            "iap": self._listen(self._port),
            "google": self._listen(),
            "google_tls": self._listen(),
            "proxy": self._listen(),
            "echo": self._listen(),
        }
        # Bound but not listening: the port stays ours and refuses every connection.
        refusing = self._resources.enter_context(socket.socket())
        refusing.bind((_HOST, 0))
        self.refusing_port: int = refusing.getsockname()[1]
        self.url, self.google_url, self.proxy_url, echo_url = (
            f"http://{_HOST}:{self._port_of(name)}" for name in ("iap", "google", "proxy", "echo")
        )
        self._upstream = self._upstream or echo_url
        self._context, self.authority_file = tls_context(self._folder, GOOGLE_NAMES)
        self.assertions = Assertions(self._cloud)
        self._token_endpoint = TokenEndpoint(self._cloud)
        self._sign_in = SignIn(self._cloud, EcKey(), self.url, self.google_url)
        self.files = CredentialFiles(
            self._cloud, self._token_endpoint, self._folder, self.google_url
        )

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
        iap = IapProxy(self._cloud, self.assertions, self._sign_in, self._upstream)
        google = google_application(self._cloud, self._token_endpoint, self._sign_in)
        proxy = ConnectProxy(self._port_of("google_tls"))
        async with contextlib.AsyncExitStack() as servers:
            await self._site(servers, echo_application(), {"echo": None})
            await self._site(servers, iap.application(), {"iap": None})
            await self._site(servers, google, {"google": None, "google_tls": self._context})
            await proxy.start(self._listeners["proxy"])
            servers.push_async_callback(proxy.stop)
            self._settled.set()
            await self._stopping.wait()

    async def _site(
        self,
        servers: contextlib.AsyncExitStack,
        application: web.Application,
        listeners: dict[str, ssl.SSLContext | None],
    ) -> None:
        # Bodies pass as they are, compressed or not; at the end nobody is waited for.
        runner = web.AppRunner(
            application, access_log=None, auto_decompress=False, shutdown_timeout=0.1
        )
        await runner.setup()
        servers.push_async_callback(runner.cleanup)
        for name, context in listeners.items():
            await web.SockSite(runner, self._listeners[name], ssl_context=context).start()

    def _listen(self, port: int = 0) -> socket.socket:
        listener = Listener(socket.create_server((_HOST, port), backlog=512))
        self._resources.callback(listener.close_accepted)
        return self._resources.enter_context(listener)

    def _port_of(self, name: str) -> int:
        port: int = self._listeners[name].getsockname()[1]
        return port

    def _temporary_folder(self) -> Path:
        folder = tempfile.mkdtemp(prefix="local-cloud-")
        self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
