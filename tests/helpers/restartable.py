"""Servers that tests stop for a while."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class Restartable(ABC):
    """A server that keeps its address and its data."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    @abstractmethod
    def restart(self) -> None:
        """Start it with its data, and return when it responds."""

    @contextmanager
    def away(self) -> Iterator[None]:
        """Keep it stopped until the block ends."""
        self.stop()
        try:
            yield
        finally:
            self.restart()
