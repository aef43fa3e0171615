"""What a kind of database must offer so that MLflow's tables can be kept in it."""

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
        timeouts: what the driver needs to stop waiting for a server that says nothing.
        show_processes: the statement that lists what all connections do.
        is_transactional: whether a migration that fails or is killed changes nothing.
    """

    name: str
    driver: str
    timeouts: ClassVar[Mapping[str, int]]
    show_processes: str
    is_transactional: bool

    @abstractmethod
    def at_socket(self, url: URL, socket: str) -> URL:
        """Return a URL for the Unix socket that Cloud SQL offers in a container."""

    @abstractmethod
    def at_address(self, url: URL, ca: str) -> URL:
        """Return a URL for its host and port, verified with the certificates in a file, if any.

        The host name is not verified, because the certificate of a Cloud SQL instance does not
        name its private address.
        """

    @abstractmethod
    def permanent_problem(self, url: URL, error: DBAPIError) -> str | None:
        """Return why waiting does not help, and what does; None if waiting may."""

    @abstractmethod
    def is_login_rejected(self, error: Exception) -> bool:
        """Return whether the driver's error says that the user or its password is wrong."""

    @abstractmethod
    def reason(self, error: DBAPIError) -> str:
        """Return one line of what the server or the driver said."""

    @abstractmethod
    def lock(self, engine: Engine, seconds: int) -> bool:
        """Take the lock on migrations for the engine's connection, or return False in the end."""

    @abstractmethod
    def unlock(self, engine: Engine) -> None:
        """Release it."""

    @abstractmethod
    def drop(self, engine: Engine, tables: list[str]) -> None:
        """Drop tables, in this order, whatever refers to them."""

    @abstractmethod
    def migration_problem(self, engine: Engine) -> str | None:
        """Return what would make MLflow's migrations fail, after the words "The database X"."""

    @abstractmethod
    def text_problem(self, engine: Engine) -> str | None:
        """Return what would let it store text wrongly, after the words "The database X"."""

    @abstractmethod
    def make_exact(self, engine: Engine) -> None:
        """Let it tell apart all names, as far as it can, before a migration."""

    @abstractmethod
    def max_connections(self, engine: Engine) -> int:
        """Return how many connections it allows to this user."""


def execute(engine: Engine, statement: str, **values: Any) -> Any:
    """Execute a statement in a transaction; return the first value of its first row."""
    with engine.begin() as connection:
        result = connection.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None
