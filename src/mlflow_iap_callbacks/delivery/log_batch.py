"""One ``log_batch`` request: combines records up to the limits of MLflow's API."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import repeat
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from ..iap.log_batch_request import Point
from ..limits import MAX_BYTES, MAX_ENTITIES, MAX_PARAMS, MAX_TAGS
from ..outbox import Record, Refusal
from ..outbox.records import POINTS
from ..tags import SKIPPED_TAG
from .names import METRICS, PARAMS, TAGS, Names, original_names

JOINABLE = ("metrics", "curve", "points", "params", "suggestions", "tags")  # kinds of records
# A margin, because the size of a request is only estimated.
_MAX_BYTES = MAX_BYTES - 50_000
# Size of an entity's JSON without its name and value.
_BYTES_PER_ENTITY = 150

Entity = Point | Metric | Param | RunTag


class Batch:
    """The content of one ``log_batch`` request, without values that MLflow would reject.

    Args:
        skipped: number of the run's NaN points that were skipped in earlier batches.
        names: MLflow's names in the run.
    """

    def __init__(self, skipped: int, names: Names) -> None:
        self._names = names
        self.skipped = skipped
        self.records: list[Record] = []
        self.refused: list[Refusal] = []
        self.other_names: dict[str, str] = {}  # for params that have another value in MLflow
        self._points: list[Point | Metric] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._size = 0

    def takes(self, record: Record) -> bool:
        """Add the record if it fits into the request. Return whether it does."""
        if record.kind == "metrics" and (names := self._names.unchanged(record.content[2])):
            size = self._add_metrics(record, names)
        elif record.kind == "points":
            size = self._add_mlflow_points(record)
        else:
            size = self._add_values(record)
        if size is None:
            return False
        self._size = size
        self.records.append(record)
        return True

    # These add a record to the content and return the new size; None if the record does not fit.

    def _add_values(self, record: Record) -> int | None:
        content = record.content
        is_points, is_params = record.kind in POINTS, record.kind in ("params", "suggestions")
        values: dict[str, Any]
        points: list[tuple[int, int, dict[str, Any]]]
        if record.kind == "curve":
            name, time_ms, curve = content
            values, points = {name: None}, [(step, time_ms, {name: value}) for step, value in curve]
        else:
            values, points = (content[2], [content]) if is_points else (content, [])
        count = sum(len(point[2]) for point in points)
        kind = METRICS if is_points else PARAMS if is_params else TAGS
        names = self._names.of(kind, values)
        tags = original_names(names)
        params = {names[name]: value for name, value in values.items()} if is_params else {}
        if kind == TAGS:
            tags = {**{names[name]: value for name, value in values.items()}, **tags}
        around = _BYTES_PER_ENTITY + (len(name) if record.kind == "curve" else 0)
        size = self._size + record.size + around * (count or len(values))
        if self.records and not self._has_room(count, params, tags, size):
            return None
        for step, time_ms, values_then in points:
            self._add_points(step, time_ms, values_then, names)
        self._params.update(params)
        if record.kind == "suggestions":
            self.other_names |= {taken: f"suggested.{name}" for name, taken in names.items()}
        self._tags.update(tags)
        return size

    def _add_mlflow_points(self, record: Record) -> int | None:
        """Add points from MLflow's own API, whose names need no change and which may be NaN."""
        size = self._size + record.size + _BYTES_PER_ENTITY * len(record.content)
        if self.records and not self._has_room(len(record.content), {}, {}, size):
            return None
        for key, value, timestamp, step, *others in record.content:
            if not others:
                self._points.append((key, value, timestamp, step))
                continue
            model_id, dataset_name, dataset_digest = others
            self._points.append(
                Metric(
                    *(key, value, timestamp, step),
                    model_id=model_id,
                    dataset_name=dataset_name,
                    dataset_digest=dataset_digest,
                )
            )
        return size

    def entities(self) -> list[Entity]:
        """Return all metrics, params and tags of the batch."""
        params = [Param(name, value) for name, value in self._params.items()]
        tags = [RunTag(name, value) for name, value in self._tags.items()]
        return [*self._points, *params, *tags]

    def _has_room(
        self, points: int, params: dict[str, str], tags: dict[str, str], size: int
    ) -> bool:
        counts = (
            len(self._points) + points,
            len(self._params.keys() | params.keys()),
            len(self._tags.keys() | tags.keys()) + 1,
        )
        # MLflow accepts a param only once per request. A second value is sent in a separate
        # request, so that MLflow decides whether to accept it.
        is_changed = any(self._params.get(name, value) != value for name, value in params.items())
        return (
            not is_changed
            and size <= _MAX_BYTES
            and counts[1] <= MAX_PARAMS
            and counts[2] <= MAX_TAGS
            and sum(counts) <= MAX_ENTITIES
        )

    def _add_metrics(self, record: Record, names: Mapping[str, str]) -> int | None:
        """Add points if they fit. Most records are points, so this does as little as possible."""
        step, time_ms, values = record.content
        size = self._size + record.size + _BYTES_PER_ENTITY * len(values)
        count = len(self._points) + len(values) + len(self._params) + len(self._tags) + 1
        if self.records and (count > MAX_ENTITIES or size > _MAX_BYTES):
            return None
        numbers = list(values.values())
        if {*map(type, numbers)} == {float} and not math.isnan(sum(numbers)):
            self._points += zip(values, numbers, repeat(time_ms), repeat(step), strict=False)
        else:
            self._add_points(step, time_ms, values, names)
        return size

    def _add_points(
        self, step: int, time_ms: int, values: dict[str, Any], names: Mapping[str, str]
    ) -> None:
        for name, value in values.items():
            try:
                number = float(value)
            except (TypeError, ValueError) as error:
                content = (step, time_ms, {name: value})
                self.refused.append(Refusal("metrics", content, str(error)))
                continue
            if math.isnan(number):  # MLflow's run page breaks on it
                self.skipped += 1
                self._tags[SKIPPED_TAG] = str(self.skipped)
            else:
                self._points.append((names[name], number, time_ms, step))


def metric(point: Point | Metric) -> Metric:
    """Return MLflow's form of a point."""
    return Metric(*point) if isinstance(point, tuple) else point


def key(entity: Entity) -> str:
    """Return the name of a metric, param or tag."""
    return entity[0] if isinstance(entity, tuple) else str(entity.key)


def refused_entity(entity: Entity, reason: str) -> Refusal:
    if isinstance(entity, tuple | Metric):
        point = metric(entity)
        content = (point.step, point.timestamp, {point.key: point.value})
        return Refusal("metrics", content, reason)
    kind = "params" if isinstance(entity, Param) else "tags"
    return Refusal(kind, {entity.key: entity.value}, reason)
