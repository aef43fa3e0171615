"""Servers that tests take away for a while."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class Restartable(ABC):
    """A server that keeps its address and what it stored."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    @abstractmethod
    def restart(self) -> None:
        """Start it on what it had stored, and return when it answers."""

    @contextmanager
    def away(self) -> Iterator[None]:
        """Ended until the block ends."""
        self.stop()
        try:
            yield
        finally:
            self.restart()
