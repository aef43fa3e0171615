"""From the variables of `appengine/app.yaml` to a running `mlflow server`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from sqlalchemy import URL, Engine

from . import schema
from .artifacts import SCHEME
from .database import connect, database_url, name_of, text_of
from .gate_settings import GateSettings, wants_permissions
from .hosts import hosts_of
from .start_error import StartError

# Seconds. Cloud SQL's restart takes about one minute; App Engine's start may take ten.
_DATABASE_WAIT = 120.0
# Two processors are busy with two: 1, 2 and 4 answered 86, 103 and 102 requests a second of 8
# clients, in 448, 660 and 1,027 MiB. Figures are of `make server-bench`, on two processors that the
# database and the load share (benchmarks/server_load.md); between two runs they moved by 20 %.
_WORKERS = 2
_UVICORN: tuple[str, ...] = (
    # Two workers and asyncio's own loop hold each answer back for 43 ms (uvicorn#3149): 0.75 times
    # as many requests. Of the parsers, h11 had 0.65 times as many in one run, 1.15 in another.
    *("--loop", "uvloop", "--http", "httptools"),
    # App Engine's front writes one. With a second, 0.78 times as many pass in one run, 1.04 in
    # another.
    "--no-access-log",
    # Seconds for which a connection is kept. nginx in front keeps its side for 60 by default, and
    # must be the first to close: a request that goes out on one that is being closed is lost.
    *("--timeout-keep-alive", "75"),
    # Seconds. At 5, the default, a worker that is busy importing or with a large file is killed.
    *("--timeout-worker-healthcheck", "30"),
)
# Seconds from SIGTERM in which requests may end: App Engine kills after 30, Cloud Run after 10.
_GRACE, _GRACE_ON_CLOUD_RUN = 25, 8
# What a tracking server does not need, and what would run code or call out.
_OFF = {
    # Eight processes more, and 1.3 GiB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Connections to the database of each worker: those that are kept, and those at need. MLflow answers
# 40 requests of a worker at once and takes up to four connections for one (log-batch: one session
# in another). Of its own 15, forty take one each and wait for the second, until 30 s later all are
# refused with 400. With 40 * 3 + 1 there is always one that has all it needs.
_POOL = {
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "81",
}
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 1800.0  # 1800: the longest start that App Engine allows


def serve(environment: Mapping[str, str], *, is_to_migrate: bool) -> NoReturn:
    """Become `mlflow server`, once what it needs is there.

    Args:
        environment: README.md of `appengine/` lists its variables.
        is_to_migrate: bring an older schema, or an empty database, up first.

    Raises:
        StartError: something is missing.
    """
    ready = _ready(environment, is_to_migrate=is_to_migrate)
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("MLFLOW_SERVER_DATABASE_")
    }
    told = {
        # Not in the command: every user of the machine can read that.
        "MLFLOW_BACKEND_STORE_URI": text_of(ready.url),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(ready.hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"https://{name}" for name in ready.hosts),
    }
    sys.stdout.flush()
    # In this process's place, so that it is the server that gets App Engine's SIGTERM.
    os.execve(  # noqa: S606 - our own command
        ready.command[0], ready.command, {**_POOL, **kept, **_OFF, **told}
    )


def migrate(environment: Mapping[str, str]) -> bool:
    """Bring the schema to this MLflow's; return whether there was anything to do.

    Raises:
        StartError: it is not possible.
    """
    engine = _database(environment, database_url(environment))
    return schema.migrate(engine, has_users=wants_permissions(environment))


def check(environment: Mapping[str, str]) -> list[str]:
    """Do all that `serve` does before it serves; return what was found, a line for each.

    Raises:
        StartError: something is missing.
    """
    ready = _ready(environment, is_to_migrate=False)
    gate = ready.gate
    return [
        f"lets in whom IAP vouches for to {gate.audience}",
        *([f"permissions by user, admins {', '.join(gate.admins)}"] * gate.has_permissions),
        f"answers to {', '.join(ready.hosts)}",
        f"database {name_of(ready.url)} answers",
        "its schema is this MLflow's",
        f"artifacts in {_destination(environment)}",
        f"serves by {' '.join(ready.command[1:])}",
    ]


class _Ready(NamedTuple):
    command: list[str]
    gate: GateSettings
    hosts: list[str]
    url: URL


def _ready(environment: Mapping[str, str], *, is_to_migrate: bool) -> _Ready:
    command = _command(environment)
    # The server's own process reads them again, too late for a status: it would end with 0.
    gate = GateSettings.from_environment(environment)
    hosts = hosts_of(environment)
    url = database_url(environment)
    engine = _database(environment, url)
    if is_to_migrate:
        schema.migrate(engine, has_users=gate.has_permissions)
    schema.require_current(engine, has_users=gate.has_permissions)
    engine.dispose()
    require_artifacts(environment)
    return _Ready(command, gate, hosts, url)


def require_artifacts(environment: Mapping[str, str]) -> None:
    """Return where the artifacts' bucket, or folder, can be used.

    Raises:
        StartError: it cannot.
    """
    destination = _destination(environment)
    if not destination.startswith("gs://"):
        try:
            Path(destination).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"Artifacts cannot be kept in {destination}: {error.strerror}. Set "
                "MLFLOW_ARTIFACTS_DESTINATION to gs://BUCKET/FOLDER."
            ) from None
        return
    from .bucket import require_bucket

    require_bucket(destination)


def _command(environment: Mapping[str, str]) -> list[str]:
    destination = _destination(environment)
    if destination.startswith("gs://"):
        destination = f"{SCHEME}://{destination.removeprefix('gs://')}"
    port = environment.get("PORT") or "8080"  # App Engine's
    workers = environment.get("MLFLOW_WORKERS") or str(_WORKERS)
    for name, text in (("PORT", port), ("MLFLOW_WORKERS", workers)):
        if not text.isdigit() or not int(text):
            raise StartError(f"{name}={text!r} is no number above 0. Correct it, or unset it.")
    grace = _GRACE_ON_CLOUD_RUN if environment.get("K_SERVICE") else _GRACE
    uvicorn = [*_UVICORN, "--timeout-graceful-shutdown", str(grace)]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "iap"),
        # App Engine's front comes from outside of the container.
        *("--host", environment.get("HOST") or "0.0.0.0", "--port", port),  # noqa: S104
        *("--workers", workers, "--artifacts-destination", destination),
        *("--uvicorn-opts", " ".join(uvicorn)),
    ]


def _destination(environment: Mapping[str, str]) -> str:
    destination = environment.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    if not destination:
        raise StartError("MLFLOW_ARTIFACTS_DESTINATION is not set. Set it to gs://BUCKET/FOLDER.")
    return destination


def _database(environment: Mapping[str, str], url: URL) -> Engine:
    name = "MLFLOW_SERVER_DATABASE_WAIT"
    text = environment.get(name) or str(_DATABASE_WAIT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise StartError(
            f"{name}={text!r} is no number of seconds. Give one from {_LEAST_SECONDS:g} to "
            f"{_MOST_SECONDS:g}, or unset it for {_DATABASE_WAIT:g}."
        )
    return connect(url, seconds)
