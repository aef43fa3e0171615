"""What must be known of a kind of database so that MLflow's tables can be kept in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

CONNECT_TIMEOUT = 5  # seconds; by default, an address that drops packets takes minutes


class DatabaseKind(ABC):
    """A kind of database.

    Attributes:
        name: its name in messages.
        driver: SQLAlchemy's name of the driver.
        timeouts: driver options with which it stops waiting for a server that does not respond.
        show_processes: the statement that lists what all connections are doing.
        is_transactional: whether the changes of a migration that fails or is killed are undone.
    """

    name: str
    driver: str
    timeouts: ClassVar[Mapping[str, int]]
    show_processes: str
    is_transactional: bool

    @abstractmethod
    def at_socket(self, url: URL, socket: str) -> URL:
        """Return the URL for the Unix socket that Cloud SQL offers in a container."""

    @abstractmethod
    def at_address(self, url: URL, ca: str) -> URL:
        """Return the URL for its host.

        If `ca` names a file of CA certificates, the server's certificate is verified with them. The
        host name is not, because the certificate of a Cloud SQL instance does not name its private
        address.
        """

    @abstractmethod
    def permanent_problem(self, url: URL, error: DBAPIError) -> str | None:
        """Return why waiting does not help, and what to do; None if waiting may help."""

    @abstractmethod
    def is_login_rejected(self, error: Exception) -> bool:
        """Return whether the driver's error says that the user or its password is wrong."""

    @abstractmethod
    def reason(self, error: DBAPIError) -> str:
        """Return the error message of the server or the driver, in one line."""

    @abstractmethod
    def lock(self, engine: Engine, seconds: int) -> bool:
        """Acquire the lock on migrations for the engine's connection; return False on a timeout."""

    @abstractmethod
    def unlock(self, engine: Engine) -> None:
        """Release the lock on migrations."""

    @abstractmethod
    def drop(self, engine: Engine, tables: list[str]) -> None:
        """Drop tables, in this order, even if other tables refer to them."""

    @abstractmethod
    def migration_problem(self, engine: Engine) -> str | None:
        """Return what would make a migration fail, as the rest of "The database X ...", or None."""

    @abstractmethod
    def text_problem(self, engine: Engine) -> str | None:
        """Return why it would store text wrongly, as the rest of "The database X ...", or None."""

    @abstractmethod
    def make_exact(self, engine: Engine) -> None:
        """Make the database distinguish all names, as far as possible, before a migration."""

    @abstractmethod
    def max_connections(self, engine: Engine) -> int:
        """Return how many connections it allows ordinary users in total."""


def execute(engine: Engine, statement: str, **values: Any) -> Any:
    """Execute a statement in a transaction; return the first value of its first row."""
    with engine.begin() as connection:
        result = connection.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None
