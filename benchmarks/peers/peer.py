"""The interface of a tracker's integration for probes, and of its stored data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curves = Mapping[str, list[tuple[int, float]]]
ENDED = ("finished", "failed", "killed")


@dataclass
class Session:
    """A run that is open during training, as in the tracker's documentation.

    Attributes:
        callbacks: callbacks for training.
        finish: called with the trained model and unseen data.
    """

    callbacks: list[Any] = field(default_factory=list)
    finish: Callable[[Any, Any, Any], None] = lambda *_: None


@dataclass
class StoredRun:
    """What is stored in a run.

    Attributes:
        status: ``running`` or one of `ENDED`; None if the tracker stores none.
        values: single values: summary, tags, and configuration except params.
        files: files by name in the run.
        charts: names of charts that the tracker draws itself.
        inputs: descriptions of data sets.
        registered: names of models in a registry.
    """

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    charts: set[str] = field(default_factory=set)
    inputs: list[str] = field(default_factory=list)
    registered: set[str] = field(default_factory=set)
    status: str | None = None


class Peer(ABC):
    """A tracker's integration.

    Args:
        folder: an empty folder, the working directory.
    """

    has_server = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def run(self, **options: Any) -> AbstractContextManager[Session]:
        """Open a run.

        Args:
            options: some of `options`; those that it does not know are ignored.
        """

    @abstractmethod
    def stored(self) -> list[StoredRun]:
        """Wait until everything is stored, and read it back."""

    @abstractmethod
    def options(self) -> set[str]:
        """Names of the parameters of the integration."""

    def leave(self) -> None:
        """Make the server unavailable."""
        raise NotImplementedError

    def come_back(self) -> None:
        """Make the server available again."""
        raise NotImplementedError
