"""Keeps a server running after its database's password was changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Dialect, Engine, event

from .database import database_url, is_login_rejected
from .start_error import StartError

_VARIABLES = ("MLFLOW_SERVER_DATABASE_PASSWORD_SECRET", "MLFLOW_SERVER_DATABASE_PASSWORD_FILE")

_logger = logging.getLogger(__name__)


def follow_changes(environment: Mapping[str, str]) -> None:
    """Whenever the database rejects the password of a new connection, read the password again.

    This affects all engines of this process. It has no effect if the password comes from neither a
    secret nor a file.
    """
    if any(environment.get(name) for name in _VARIABLES):
        connect = reconnecting(lambda: str(database_url(environment).password))
        event.listen(Engine, "do_connect", connect)


def reconnecting(
    read: Callable[[], str],
) -> Callable[[Dialect, object, list[Any], dict[str, Any]], Any]:
    """Return a function that connects, and that retries once if the password has been changed.

    Args:
        read: returns the current password; may raise a StartError.
    """
    lock = threading.Lock()

    def connect(dialect: Dialect, _: object, args: list[Any], options: dict[str, Any]) -> Any:
        rejected = options.get("password")
        try:
            return dialect.connect(*args, **options)
        except Exception as error:
            if not is_login_rejected(error):
                raise
            # An engine's connections share these options: only one thread reads the password again.
            with lock:
                if options.get("password") == rejected:
                    options["password"] = _read(read) or rejected
            if options["password"] == rejected:
                raise
        return dialect.connect(*args, **options)

    return connect


def _read(read: Callable[[], str]) -> str | None:
    try:
        return read()
    except StartError as error:
        _logger.warning("mlflow-iap: The database rejected the password. %s", error.message)
        return None
