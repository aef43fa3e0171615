"""A run that keeps what is logged to it, to test the code that logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.data.dataset import Dataset

from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.outbox.records import ROW, Record, packed


class RecordingRun(RunWriter):
    """A ``RunWriter`` without a client, a journal or delivery.

    Attributes:
        points: name, step, timestamp and value of each.
        artifacts: content by path.
        models: names of each model's files, and the name under which it is registered.
        inputs: data sets, each with its context.
    """

    def __init__(self) -> None:
        self.key, self._run = "key", None
        self.points: list[tuple[str, int, int | None, Any]] = []
        self.params: dict[str, Any] = {}
        self.suggestions: dict[str, Any] = {}
        self.tags: dict[str, Any] = {}
        self.experiment_tags: dict[str, Any] = {}
        self.artifacts: dict[str, bytes] = {}
        self.models: list[tuple[set[str], str | None]] = []
        self.inputs: list[tuple[Dataset, str | None]] = []
        self.status: str | None = None
        self.end_time: int | None = None

    def curve(self, name: str) -> list[tuple[int, Any]]:
        """Step and value of a metric's points, as they were logged."""
        return [(step, value) for metric, step, _, value in self.points if metric == name]

    def metrics(self) -> set[str]:
        return {name for name, *_ in self.points}

    def _append(self, kind: str, content: Any) -> None:
        assert kind == ROW
        step, time_ms, values = Record.from_message(1, packed((1, kind, content))).content
        self.log_metrics(values, step, timestamp=time_ms)

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        timestamp: int | None = None,
    ) -> None:
        assert self.status is None, "the run has ended"
        self.points += [(name, step or 0, timestamp, value) for name, value in metrics.items()]

    def log_curve(
        self, name: str, points: Sequence[tuple[int, float]], *, timestamp: int | None = None
    ) -> None:
        self.points += [(name, step, timestamp, value) for step, value in points]

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.params |= params

    def log_suggestions(self, params: Mapping[str, Any]) -> None:
        self.suggestions |= params

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self.tags |= tags

    def set_experiment_tags(self, tags: Mapping[str, Any]) -> None:
        self.experiment_tags |= tags

    def log_artifact(
        self, local_path: str | Path, artifact_path: str | None = None, *, copy: bool = True
    ) -> None:
        path = Path(local_path)
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                to = Path(artifact_path or "", file.relative_to(path.parent))
                self.artifacts[to.as_posix()] = file.read_bytes()

    def log_model(
        self, local_path: str | Path, name: str = "model", *, registered_name: str | None = None
    ) -> None:
        self.models.append(({file.name for file in Path(local_path).iterdir()}, registered_name))

    def log_input(
        self,
        dataset: Dataset,
        context: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.inputs.append((dataset, context))

    def reopen(self) -> None:
        self.status = None

    def finish_at_exit(self, status: str | None) -> None:
        pass

    def finish(self, status: str = "FINISHED", *, end_time: int | None = None) -> None:
        self.status, self.end_time = status, end_time
