"""What a tracker's integration looks like to a probe, and what it stored, read back."""

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
    """One run, as the tracker's documentation opens it around a training.

    Attributes:
        callbacks: for the training.
        finish: what is called with the trained model and data that it has not seen.
    """

    callbacks: list[Any] = field(default_factory=list)
    finish: Callable[[Any, Any, Any], None] = lambda *_: None


@dataclass
class StoredRun:
    """What one run holds.

    Attributes:
        status: ``running`` or one of `ENDED`; None where the tracker notes none.
        values: what is stored once: summary, tags, configuration beside the params.
        files: by their name in the run.
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
    """One tracker's integration.

    Args:
        folder: an empty one, the working directory.
    """

    has_server = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def run(self, **options: Any) -> AbstractContextManager[Session]:
        """Open a run.

        Args:
            options: of `options`; what it does not know is left out.
        """

    @abstractmethod
    def stored(self) -> list[StoredRun]:
        """Wait until everything is stored, and read it back."""

    @abstractmethod
    def options(self) -> set[str]:
        """Names of the parameters of what is called."""

    def leave(self) -> None:
        """Let the server be away."""
        raise NotImplementedError

    def come_back(self) -> None:
        """Let it be there again."""
        raise NotImplementedError
