"""MLflow's database: composes its URL, and waits until it accepts connections."""

from __future__ import annotations

import ipaddress
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy
from sqlalchemy import URL, Engine, NullPool, StaticPool
from sqlalchemy.exc import DBAPIError

from .database_kind import CONNECT_TIMEOUT, DatabaseKind
from .mysql import MySQL
from .postgresql import PostgreSQL
from .secret import read_secret
from .start_error import StartError

_KINDS: dict[str, DatabaseKind] = {"mysql": MySQL(), "postgresql": PostgreSQL()}
_PASSWORD = "MLFLOW_SERVER_DATABASE_PASSWORD"  # noqa: S105 - a variable's name
_RETRY_INTERVAL = 0.5  # seconds
_ADDRESS = re.compile(r"(?P<host>[^\s:/@\[\]]*)(:(?P<port>[0-9]+))?")
_IPV6_ADDRESS = re.compile(r"\[(?P<host>.*)\](:(?P<port>[0-9]+))?|(?P<bare>[^\[\]]*:[^\[\]]*:.*)")


def database_url(environment: Mapping[str, str]) -> URL:
    """Return the URL of the database that environment variables name.

    Raises:
        StartError: unless exactly one of socket and host is set, and exactly one password, which
            must be readable.
    """
    socket = environment.get("MLFLOW_SERVER_DATABASE_SOCKET", "")
    host, port = _host_and_port(environment.get("MLFLOW_SERVER_DATABASE_HOST", "").strip())
    if bool(socket) == bool(host):
        raise StartError(
            "MLFLOW_SERVER_DATABASE_SOCKET and MLFLOW_SERVER_DATABASE_HOST are both "
            f"{'set' if socket else 'unset'}. Set only the first, to "
            "/cloudsql/PROJECT:REGION:INSTANCE, or only the second, to HOST or HOST:PORT."
        )
    if socket and not socket.startswith("/"):
        # PostgreSQL's driver would take it for the name of a host.
        raise StartError(
            f"MLFLOW_SERVER_DATABASE_SOCKET is {socket!r}. Set it to the whole path, such as "
            "/cloudsql/PROJECT:REGION:INSTANCE."
        )
    kind = _KINDS[_engine(environment)]
    url = URL.create(
        kind.driver,
        username=environment.get("MLFLOW_SERVER_DATABASE_USER") or "mlflow",
        password=_password(environment),
        host=host or None,
        port=port,
        database=environment.get("MLFLOW_SERVER_DATABASE_NAME") or "mlflow",
    )
    # Cloud SQL encrypts connections to its socket itself.
    return kind.at_socket(url, socket) if socket else kind.at_address(url, _ca(environment))


def kind_of(url: URL) -> DatabaseKind:
    """Return the kind of database that a URL from `database_url` names."""
    return _KINDS[url.get_backend_name()]


def is_login_rejected(error: Exception) -> bool:
    """Return whether a driver's error says that the user or its password is wrong."""
    return any(kind.is_login_rejected(error) for kind in _KINDS.values())


def _engine(environment: Mapping[str, str]) -> str:
    name = "MLFLOW_SERVER_DATABASE_ENGINE"
    engine = environment.get(name) or "mysql"
    if engine not in _KINDS:
        raise StartError(f"{name}={engine!r} is unknown. Set it to {' or '.join(_KINDS)}.")
    return engine


def _ca(environment: Mapping[str, str]) -> str:
    name = "MLFLOW_SERVER_DATABASE_CA"
    file = environment.get(name, "")
    try:
        if file:
            ssl.create_default_context(cafile=file)
    except OSError as error:
        raise StartError(
            f"{name}={file} has no certificates: {error}. Set it to the file with the server CA of "
            "the database."
        ) from None
    return file


def _host_and_port(text: str) -> tuple[str, int | None]:
    try:
        if found := _IPV6_ADDRESS.fullmatch(text):
            host = str(ipaddress.IPv6Address(found["host"] or found["bare"]))
        elif found := _ADDRESS.fullmatch(text):
            host = found["host"]
            host.encode("idna")  # raises a ValueError if no name server could know it
        port = int(found["port"] or 0) if found else 65_536
        if port > 65_535:
            raise ValueError
    except ValueError:
        raise StartError(
            f"MLFLOW_SERVER_DATABASE_HOST is {text!r}. Set it to HOST or HOST:PORT; write an IPv6 "
            "address with a port as [ADDRESS]:PORT."
        ) from None
    return host, port or None


def name_of(url: URL) -> str:
    """Return the name and the address of a database, for messages."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host
    port = f":{url.port}" if url.port else ""
    socket = url.query.get("unix_socket") or url.query.get("host")
    return f"{url.database} at {socket or f'{host}{port}'}"


def connect(url: URL, seconds: float) -> Engine:
    """Return an engine with one connection, once the database accepts it.

    Args:
        url: from `database_url`.
        seconds: how long to wait for a database that is not available yet.

    Raises:
        StartError: if it is not available in time, or if waiting does not help.
    """
    kind = kind_of(url)
    probe = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=dict(kind.timeouts))
    # One connection, so that a lock on it is held as long as the engine works, and no longer. It
    # has no timeout for reading, because a migration may take long.
    engine = sqlalchemy.create_engine(
        url, poolclass=StaticPool, connect_args={"connect_timeout": CONNECT_TIMEOUT}
    )
    ends = time.monotonic() + seconds
    while True:
        try:
            with probe.connect(), engine.connect():
                return engine
        except DBAPIError as error:
            if problem := kind.permanent_problem(url, error):
                raise StartError(
                    f"The database {name_of(url)} rejects the connection: {problem}"
                ) from None
            if time.monotonic() + _RETRY_INTERVAL > ends:
                raise StartError(
                    f"The database {name_of(url)} was not available within {seconds:g} s: "
                    f"{kind.reason(error)}. Check that it runs, that it is {kind.name} (see "
                    "MLFLOW_SERVER_DATABASE_ENGINE), that the Cloud Run service or app.yaml names "
                    "its instance, and that the service account has roles/cloudsql.client."
                ) from None
        # Cloud SQL's socket appears soon after the container starts. The database takes about a
        # minute to restart.
        time.sleep(_RETRY_INTERVAL)


def _password(environment: Mapping[str, str]) -> str:
    names = (_PASSWORD, f"{_PASSWORD}_FILE", f"{_PASSWORD}_SECRET")
    given = [name for name in names if environment.get(name)]
    if len(given) != 1:
        raise StartError(
            f"{len(given)} database passwords are set. Set exactly one of "
            f"{', '.join(reversed(names))} (the first to projects/PROJECT/secrets/NAME/versions/"
            "latest)."
        )
    value = environment[given[0]]
    if given[0].endswith("_SECRET"):
        return read_secret(value)
    if given[0].endswith("_FILE"):
        try:
            return Path(value).read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(
                f"{given[0]}={value} cannot be read: {error}. Make it readable for this user."
            ) from None
    return value
