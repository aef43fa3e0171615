"""MLflow's database: composes its URL, and waits until it accepts connections."""

from __future__ import annotations

import ipaddress
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy
from pymysql.constants import ER
from sqlalchemy import URL, Engine, NullPool, StaticPool
from sqlalchemy.exc import DBAPIError

from .secret import read_secret
from .start_error import StartError

# Pure Python, so there is nothing to compile and no system library to keep patched. With
# mysqlclient (C), the server handled 0.9 and 1.2 times as many requests in two runs of
# `make server-bench`.
_DRIVER = "mysql+pymysql"
_PASSWORD = "MLFLOW_SERVER_DATABASE_PASSWORD"  # noqa: S105 - a variable's name
_RETRY_INTERVAL = 0.5  # seconds
_ADDRESS = re.compile(r"(?P<host>[^\s:/@\[\]]*)(:(?P<port>\d+))?")
_IPV6_ADDRESS = re.compile(r"\[(?P<host>.*)\](:(?P<port>\d+))?|(?P<bare>[^\[\]]*:[^\[\]]*:.*)")
_CONNECT_TIMEOUT = 5  # seconds; by default, an address that drops packets takes minutes
# A server that accepts a connection and says nothing would be waited for without end.
_TIMEOUTS = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _CONNECT_TIMEOUT)
# Errors that waiting does not solve, by code.
_PERMANENT = {
    ER.ACCESS_DENIED_ERROR: (
        "the user or its password is wrong. Set the user's password to the secret's text "
        "(`gcloud sql users set-password`)."
    ),
    ER.DBACCESS_DENIED_ERROR: "the user has no privileges on it. Grant them.",
    ER.BAD_DB_ERROR: "no database has this name. Create it: `gcloud sql databases create`.",
}


def database_url(environment: Mapping[str, str]) -> URL:
    """Return the URL of the database that environment variables name.

    Raises:
        StartError: unless exactly one of socket and host is set, and exactly one password, which
            can be read.
    """
    socket = environment.get("MLFLOW_SERVER_DATABASE_SOCKET", "")
    host, port = _host_and_port(environment.get("MLFLOW_SERVER_DATABASE_HOST", "").strip())
    if bool(socket) == bool(host):
        raise StartError(
            f"{'Both' if socket else 'Neither'} of MLFLOW_SERVER_DATABASE_SOCKET and "
            "MLFLOW_SERVER_DATABASE_HOST are set. Set the first to "
            "/cloudsql/PROJECT:REGION:INSTANCE, or the second to HOST or HOST:PORT."
        )
    return URL.create(
        _DRIVER,
        username=environment.get("MLFLOW_SERVER_DATABASE_USER") or "mlflow",
        password=_password(environment),
        host=host or "localhost",
        port=port,
        database=environment.get("MLFLOW_SERVER_DATABASE_NAME") or "mlflow",
        # MySQL's plain "utf8" has no characters of more than three bytes.
        query={
            "charset": "utf8mb4",
            **({"unix_socket": socket} if socket else _tls(environment)),
        },
    )


def _tls(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return what encrypts connections to an address; Cloud SQL's socket encrypts them itself."""
    name = "MLFLOW_SERVER_DATABASE_CA"
    file = environment.get(name, "")
    if not file:
        return {}
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        raise StartError(
            f"{name}={file} has no certificates: {error}. Set it to the file with the server CA of "
            "the database."
        ) from None
    # The certificate of a Cloud SQL instance does not name its private address.
    return {"ssl_ca": file, "ssl_check_hostname": "false"}


def _host_and_port(text: str) -> tuple[str, int | None]:
    try:
        if found := _IPV6_ADDRESS.fullmatch(text):
            host = str(ipaddress.IPv6Address(found["host"] or found["bare"]))
        elif found := _ADDRESS.fullmatch(text):
            host = found["host"]
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
    return f"{url.database} at {url.query.get('unix_socket') or f'{host}{port}'}"


def connect(url: URL, seconds: float) -> Engine:
    """Return an engine with one connection, once the database accepts it.

    Args:
        url: from `database_url`.
        seconds: how long to wait for a database that is not available yet.

    Raises:
        StartError: if it is not available in time, or rejects this user.
    """
    probe = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=_TIMEOUTS)
    # One connection, so that a lock on it is held as long as the engine works, and no longer. It
    # has no timeout for reading, because a migration may take long.
    engine = sqlalchemy.create_engine(
        url, poolclass=StaticPool, connect_args={"connect_timeout": _CONNECT_TIMEOUT}
    )
    ends = time.monotonic() + seconds
    while True:
        try:
            with probe.connect(), engine.connect():
                return engine
        except DBAPIError as error:
            code, text = _reason(error)
            if code in _PERMANENT:
                raise StartError(
                    f"The database {name_of(url)} rejects the connection: {_PERMANENT[code]}"
                ) from None
            if time.monotonic() + _RETRY_INTERVAL > ends:
                raise StartError(
                    f"The database {name_of(url)} did not respond within {seconds:g} s: {text}. "
                    "Check that it runs, that app.yaml names its instance, and that the service "
                    "account has roles/cloudsql.client."
                ) from None
        # Cloud SQL's socket appears soon after the container starts; a restart of the database
        # takes about a minute.
        time.sleep(_RETRY_INTERVAL)


def _password(environment: Mapping[str, str]) -> str:
    names = (_PASSWORD, f"{_PASSWORD}_FILE", f"{_PASSWORD}_SECRET")
    given = [name for name in names if environment.get(name)]
    if len(given) != 1:
        raise StartError(
            f"The database's password is set {len(given)} times. Set exactly one of "
            f"{', '.join(reversed(names))}, the first to projects/PROJECT/secrets/NAME/versions/"
            "latest."
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


def _reason(error: DBAPIError) -> tuple[int, str]:
    code, *rest = error.orig.args if error.orig is not None else (0,)
    return code if isinstance(code, int) else 0, str(rest[-1] if rest else code).rstrip(".")
