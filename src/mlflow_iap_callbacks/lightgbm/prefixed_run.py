"""A part of a run, for one of several training runs that are logged to it."""

from __future__ import annotations

import copy
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..delivery.run import IAPRun, LogRow, row_logger

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset


class PrefixedRun:
    """Logs everything to a run under a prefix, as ``PREFIX/NAME``.

    Args:
        whole: the run.
        prefix: as ``checked_prefix`` returns it.
    """

    def __init__(self, whole: IAPRun, prefix: str) -> None:
        self.whole = whole
        self._prefix = prefix

    @property
    def url(self) -> str | None:
        return self.whole.url

    def show_link(self) -> None:
        self.whole.show_link()

    def log_metrics(
        self, values: Mapping[str, float], *, step: int = 0, timestamp: int | None = None
    ) -> None:
        self.whole.log_metrics(self._named(values), step=step, timestamp=timestamp)

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.whole.log_params(self._named(params))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self.whole.set_tags(tags)

    def log_artifact(self, local_path: str | Path) -> None:
        self.whole.log_artifact(local_path, self._prefix)

    def log_model(self, local_path: str | Path, *, registered_name: str | None = None) -> None:
        name = f"{self._prefix}/model"
        self.whole.log_model(local_path, name, registered_name=registered_name)

    def log_input(self, dataset: Dataset, context: str | None = None) -> None:
        named = copy.copy(dataset)
        named._name = f"{self._prefix}/{dataset.name}"
        self.whole.log_input(named, context)

    def finish(self, status: str = "FINISHED", *, end_time: int | None = None) -> None:
        self.whole.finish(status, end_time=end_time)

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self._prefix}/{name}": value for name, value in values.items()}


def row_logger_of(run: IAPRun | PrefixedRun, names: Sequence[str]) -> LogRow | None:
    """Return ``row_logger`` of a run, or of a part of a run."""
    if isinstance(run, PrefixedRun):
        return row_logger(run.whole, [*run._named(dict.fromkeys(names))])
    return row_logger(run, names)


def checked_prefix(prefix: object) -> str:
    """Return a prefix without slashes around it.

    Raises:
        ValueError: it is not a folder name.
    """
    plain = prefix.strip("/") if isinstance(prefix, str) else ""
    if not plain or posixpath.normpath(plain) != plain or plain.startswith("."):
        raise ValueError(f"prefix is {prefix!r}. Give the name of a folder, such as 'fold1'.")
    return plain
