"""The database that MLflow stores in: its URL from parts, and the wait until it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy
from pymysql.constants import ER
from sqlalchemy import URL, Engine, StaticPool
from sqlalchemy.exc import DBAPIError

from .secret import read_secret
from .start_error import StartError

# In pure Python: nothing to compile, and no library of the system's to keep patched.
# mysqlclient (C) answered 0.9 to 1.2 times as many requests, in two runs of `make server-bench`.
_DRIVER = "mysql+pymysql"
_PASSWORD = "MLFLOW_SERVER_DATABASE_PASSWORD"  # noqa: S105 - a variable's name
_POLL = 0.5  # seconds between two tries
_CONNECT_TIMEOUT = 5  # seconds for one; a TCP address that swallows packets would take minutes
# What another try cannot cure.
_REFUSED = {
    ER.ACCESS_DENIED_ERROR: (
        "the user or its password is wrong. Compare the secret with the user's password "
        "(`gcloud sql users set-password`)."
    ),
    ER.DBACCESS_DENIED_ERROR: "the user may not use it. Grant it to the user.",
    ER.BAD_DB_ERROR: "there is none of this name. Create it: `gcloud sql databases create`.",
}


def database_url(environment: Mapping[str, str]) -> URL:
    """The database's URL from the variables of `appengine/app.yaml`, the password encoded.

    Raises:
        StartError: not one of socket and host, not one password, or one that cannot be read.
    """
    socket = environment.get("MLFLOW_SERVER_DATABASE_SOCKET", "")
    host, _, port = environment.get("MLFLOW_SERVER_DATABASE_HOST", "").partition(":")
    if bool(socket) == bool(host):
        raise StartError(
            f"{'Both' if socket else 'Neither'} of MLFLOW_SERVER_DATABASE_SOCKET and "
            "MLFLOW_SERVER_DATABASE_HOST are set. Set the first to "
            "/cloudsql/PROJECT:REGION:INSTANCE, or the second to HOST or HOST:PORT."
        )
    if port and not port.isdigit():
        raise StartError(
            f"MLFLOW_SERVER_DATABASE_HOST has the port {port!r}. Set it to HOST or HOST:PORT."
        )
    return URL.create(
        _DRIVER,
        username=environment.get("MLFLOW_SERVER_DATABASE_USER") or "mlflow",
        password=_password(environment),
        host=host or "localhost",
        port=int(port) if port else None,
        database=environment.get("MLFLOW_SERVER_DATABASE_NAME") or "mlflow",
        # MySQL's plain "utf8" has no characters beyond three bytes.
        query={"charset": "utf8mb4", **({"unix_socket": socket} if socket else {})},
    )


def text_of(url: URL) -> str:
    """For MLflow's environment; a `URL` prints itself without its password."""
    return url.render_as_string(hide_password=False)


def name_of(url: URL) -> str:
    """For people: the database and where it is, without user and password."""
    port = f":{url.port}" if url.port else ""
    return f"{url.database} at {url.query.get('unix_socket') or f'{url.host}{port}'}"


def connect(url: URL, seconds: float) -> Engine:
    """An engine of one connection, as soon as the database answers.

    Args:
        url: as of `database_url`.
        seconds: to wait for a database that is not there yet.

    Raises:
        StartError: it did not answer in time, or it refuses this user.
    """
    # One connection: a lock taken on it is held for what is done on it, and only for that.
    engine = sqlalchemy.create_engine(
        url, poolclass=StaticPool, connect_args={"connect_timeout": _CONNECT_TIMEOUT}
    )
    ends = time.monotonic() + seconds
    while True:
        try:
            with engine.connect():
                return engine
        except DBAPIError as error:
            code, text = _reason(error)
            if code in _REFUSED:
                raise StartError(f"The database {name_of(url)} refuses: {_REFUSED[code]}") from None
            if time.monotonic() + _POLL > ends:
                raise StartError(
                    f"The database {name_of(url)} did not answer within {seconds:g} s: {text}. "
                    "Check that it runs, that app.yaml names its instance, and that the service "
                    "account has roles/cloudsql.client."
                ) from None
        # Cloud SQL's socket comes a moment after the container; a restart takes about a minute.
        time.sleep(_POLL)


def _password(environment: Mapping[str, str]) -> str:
    names = (_PASSWORD, f"{_PASSWORD}_FILE", f"{_PASSWORD}_SECRET")
    given = [name for name in names if environment.get(name)]
    if len(given) != 1:
        raise StartError(
            f"The database's password is given {len(given)} times. Set one of "
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
                f"{given[0]}={value} cannot be read: {error}. Make it readable by this user."
            ) from None
    return value


def _reason(error: DBAPIError) -> tuple[int, str]:
    code, *rest = error.orig.args if error.orig is not None else (0,)
    return code if isinstance(code, int) else 0, str(rest[-1] if rest else code).rstrip(".")
