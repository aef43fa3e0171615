"""Starts `mlflow server` with the environment variables of `appengine/app.yaml`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError

from . import schema
from .artifacts import SCHEME
from .database import connect, database_url, kind_of, name_of
from .gate_settings import GateSettings, wants_permissions
from .hosts import hosts_of
from .start_error import StartError

# Seconds. Cloud SQL restarts in about one minute; appengine/app.yaml allows ten for a start.
_DATABASE_WAIT = 120.0
# Two keep two processors busy: 1, 2 and 4 workers handled 86, 103 and 102 requests a second from 8
# clients, in 448, 660 and 1,027 MiB. These figures are from `make server-bench`, where the database
# and the clients share the two processors (benchmarks/server_load.md); they vary by 20 %.
_WORKERS = 2
_UVICORN: tuple[str, ...] = (
    # With two workers, asyncio's own loop delays each response by 43 ms (uvicorn#3149): the server
    # handles 0.75 times as many requests. With h11 instead of httptools, it handled 0.65 times as
    # many in one run, and 1.15 times in another.
    *(
        "--loop",
        "uvloop",
        "--http",
        "mlflow_iap_callbacks.server.http_protocol:BoundedHeadersProtocol",
    ),
    # App Engine's front end has an access log. With a second one, the server handled 0.78 times as
    # many requests in one run, and 1.04 times in another.
    "--no-access-log",
    # Seconds until an idle connection is closed. nginx closes its side after 60 by default. nginx
    # must be first, because a request that is sent on a closing connection is lost.
    *("--timeout-keep-alive", "75"),
    # Seconds. The default of 5 kills workers that are busy with an import or a large file.
    *("--timeout-worker-healthcheck", "30"),
)
# Seconds from SIGTERM for requests to finish: App Engine kills after 30, Cloud Run after 10.
_GRACE, _GRACE_ON_CLOUD_RUN = 25, 8
# Neither a bucket nor a path. As a path, it would be a folder in the container.
_OTHER_SCHEME = re.compile(r"(?!gs://[^/])[A-Za-z][A-Za-z0-9+.-]*:")
# Features that a tracking server does not need, or that run code or call other services.
_OFF = {
    # Eight more processes, which take 1.3 GiB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Database connections of each worker: those kept open, and more on demand, which are closed after
# use. A worker handles 40 requests at once, and each takes up to four connections, because MLflow
# nests sessions (`log-batch` takes one: batch_store.py). With MLflow's own 15, requests that have
# one connection each wait for a second one, and after 30 s all fail with 400. With 40 * 3 + 1, at
# least one request always gets all that it needs.
_POOL = {
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "81",
}
_MAX_PORT, _MAX_NUMBER = 65_535, 10_000
_MIN_WAIT, _MAX_WAIT = 1.0, 1800.0  # seconds; App Engine allows no longer start


def serve(environment: Mapping[str, str], *, must_migrate: bool) -> NoReturn:
    """Replace this process with `mlflow server`, once everything that it needs is available.

    Args:
        environment: environment variables, documented in appengine/README.md.
        must_migrate: whether to migrate an empty database or an older schema first.

    Raises:
        StartError: if something is missing or wrong.
    """
    ready = _ready(environment, must_migrate=must_migrate)
    kept = {
        name: value
        for name, value in environment.items()
        if name != "MLFLOW_SERVER_DATABASE_PASSWORD"
    }
    added = {
        # Not in the command line, which every user of the machine can read.
        "MLFLOW_BACKEND_STORE_URI": ready.url.render_as_string(hide_password=False),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(ready.hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"https://{name}" for name in ready.hosts),
    }
    if ready.most_connections > ready.max_connections:
        print(_connections(ready), file=sys.stderr)  # noqa: T201 - no log is set up yet
    sys.stdout.flush()
    # The server replaces this process, so that it gets App Engine's SIGTERM.
    os.execve(  # noqa: S606 - our own command
        ready.command[0], ready.command, {**_POOL, **kept, **_OFF, **added}
    )


def migrate(environment: Mapping[str, str]) -> bool:
    """Migrate the schema to this version of MLflow, and return whether that changed anything.

    Raises:
        StartError: if it cannot be migrated.
    """
    url = database_url(environment)
    engine = _database(environment, url)
    with _explained(url):
        return schema.migrate(engine, has_users=wants_permissions(environment))


def delete_garbage(environment: Mapping[str, str], older_than: str) -> None:
    """Delete for good, and list, what users deleted at least this long ago, such as 30d.

    Raises:
        StartError: if it cannot be deleted.
    """
    from .garbage import delete_garbage

    url = database_url(environment)
    engine = _database(environment, url)
    with _explained(url):
        schema.require_current(engine, has_users=wants_permissions(environment))
    engine.dispose()
    require_artifacts(environment)
    delete_garbage(url, _artifacts(environment), older_than)


def move_users(environment: Mapping[str, str], old: str, domain: str) -> list[str]:
    """Copy users with their permissions from another MLflow server, and return their e-mails.

    Raises:
        StartError: if they cannot be copied.
    """
    from .moved_users import move_users

    url = database_url(environment)
    engine = _database(environment, url)
    with _explained(url):
        schema.require_current(engine, has_users=True)
    return move_users(create_engine(old), engine, domain)


def check(environment: Mapping[str, str]) -> list[str]:
    """Run the checks of `serve`, and return a line about each result.

    Raises:
        StartError: if something is missing or wrong.
    """
    ready = _ready(environment, must_migrate=False)
    gate = ready.gate
    return [
        f"accepts assertions of IAP for {gate.audience}",
        *([f"permissions by user, admins {', '.join(gate.admins)}"] * gate.has_permissions),
        f"responds to {', '.join(ready.hosts)}",
        f"database {name_of(ready.url)} responds",
        "its schema is current",
        _connections(ready),
        f"artifacts in {_destination(environment)}",
        f"serves with {' '.join(ready.command[1:])}",
    ]


class _Ready(NamedTuple):
    command: list[str]
    gate: GateSettings
    hosts: list[str]
    url: URL
    max_connections: int  # that the database allows
    most_connections: int  # that this server opens


def _ready(environment: Mapping[str, str], *, must_migrate: bool) -> _Ready:
    command = _command(environment)
    # The server reads them again, but exits with status 0 if they are wrong.
    gate = GateSettings.from_environment(environment)
    hosts = hosts_of(environment)
    url = database_url(environment)
    engine = _database(environment, url)
    with _explained(url):
        if must_migrate:
            schema.migrate(engine, has_users=gate.has_permissions)
        schema.require_current(engine, has_users=gate.has_permissions)
        max_connections = kind_of(url).max_connections(engine)
    engine.dispose()
    require_artifacts(environment)
    most_connections = int(environment.get("MLFLOW_WORKERS") or _WORKERS) * sum(
        int(environment.get(name) or default) for name, default in _POOL.items()
    )
    return _Ready(command, gate, hosts, url, max_connections, most_connections)


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    """Raise a StartError if the database, once connected, rejects a statement."""
    try:
        yield
    except DBAPIError as error:
        raise StartError(
            f"The database {name_of(url)} cannot be used: {kind_of(url).reason(error)}. Check that "
            f"its user {url.username} has all privileges on the tables there."
        ) from None


def _connections(ready: _Ready) -> str:
    most, allowed = ready.most_connections, ready.max_connections
    found = f"it allows {allowed} connections, and this server opens up to {most} under load"
    if most <= allowed:
        return found
    return (
        f"{found}: requests that get none fail. Set the database's flag max_connections to {most} "
        "for each instance, or MLFLOW_WORKERS to fewer."
    )


def require_artifacts(environment: Mapping[str, str]) -> None:
    """Check that the bucket or folder of the artifacts can be used.

    Raises:
        StartError: if it cannot.
    """
    destination = _destination(environment)
    if not destination.startswith("gs://"):
        try:
            Path(destination).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"Artifacts cannot be stored in {destination}: {error.strerror}. Set "
                "MLFLOW_ARTIFACTS_DESTINATION to gs://BUCKET/FOLDER."
            ) from None
        return
    from .bucket import require_bucket

    require_bucket(destination)


def _command(environment: Mapping[str, str]) -> list[str]:
    port = environment.get("PORT") or "8080"  # App Engine's
    workers = environment.get("MLFLOW_WORKERS") or str(_WORKERS)
    pool = [(name, environment.get(name) or default) for name, default in _POOL.items()]
    for name, text in (("PORT", port), ("MLFLOW_WORKERS", workers), *pool):
        most = _MAX_PORT if name == "PORT" else _MAX_NUMBER
        if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= most:
            raise StartError(
                f"{name}={text!r} is not a number from 1 to {most}. Correct it, or unset it."
            )
    grace = _GRACE_ON_CLOUD_RUN if environment.get("K_SERVICE") else _GRACE
    uvicorn = [*_UVICORN, "--timeout-graceful-shutdown", str(grace)]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "iap"),
        # All addresses, because App Engine's front end is outside of the container.
        *("--host", environment.get("HOST") or "0.0.0.0", "--port", port),  # noqa: S104
        *("--workers", workers, "--artifacts-destination", _artifacts(environment)),
        *("--uvicorn-opts", " ".join(uvicorn)),
    ]


def _artifacts(environment: Mapping[str, str]) -> str:
    """Return the URI of the artifacts for which MLflow uses this package's own repository."""
    destination = _destination(environment).rstrip("/")
    if destination.startswith("gs://"):
        return f"{SCHEME}://{destination.removeprefix('gs://')}"
    return destination


def _destination(environment: Mapping[str, str]) -> str:
    destination = environment.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    if not destination:
        raise StartError("MLFLOW_ARTIFACTS_DESTINATION is not set. Set it to gs://BUCKET/FOLDER.")
    if _OTHER_SCHEME.match(destination):
        raise StartError(
            f"MLFLOW_ARTIFACTS_DESTINATION is {destination!r}. Set it to gs://BUCKET/FOLDER, or to "
            "the path of a folder."
        )
    return destination


def _database(environment: Mapping[str, str], url: URL) -> Engine:
    name = "MLFLOW_SERVER_DATABASE_WAIT"
    text = environment.get(name) or str(_DATABASE_WAIT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _MIN_WAIT <= seconds <= _MAX_WAIT:
        raise StartError(
            f"{name}={text!r} is not a number of seconds from {_MIN_WAIT:g} to {_MAX_WAIT:g}. "
            f"Correct it, or unset it to use {_DATABASE_WAIT:g}."
        )
    return connect(url, seconds)
