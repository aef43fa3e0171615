"""Converts what is logged to a run to records, before they are appended to the outbox."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from ..limits import MAX_METRICS, MAX_PARAM_LENGTH, MAX_PARAMS, MAX_TAG_LENGTH, MAX_TAGS
from .clock import now_ms
from .never_raising import never_raising
from .plain_values import (
    as_number,
    as_numbers,
    as_text,
    as_texts,
    integer,
    parts_of,
    text_parts,
)
from .run_creation import Mode

# The kind of a record, and its content.
Content = tuple[str, Any]


class Keyed(Protocol):
    """A run that has a key."""

    @property
    def key(self) -> str:
        """Its key."""
        ...


def start_record(
    *,
    key: str,
    experiment: str,
    logged_at: float,
    tags: Mapping[str, Any],
    run_name: str | None = None,
    start_time: int | None = None,
    mode: Mode = Mode.NEW,
    parent: Keyed | str | None = None,
    not_before: float = 0.0,
    former_key: str | None = None,
) -> Content:
    """Return the start of a new run.

    Args:
        key: run key, stored as a tag.
        experiment: the experiment, as ``name:NAME`` or ``id:ID``.
        logged_at: the time, in seconds since 1970.
        tags: tags of the run, as many as fit in one request, and none with its name.
        start_time: milliseconds since 1970, UTC. Default: now.
        run_name, mode, parent, not_before, former_key: see ``RunWriter``.
    """
    content = {
        "key": key,
        "experiment": experiment,
        "name": None if run_name is None else as_text(run_name)[:MAX_TAG_LENGTH],
        "time_ms": start_time or now_ms(),
        "tags": tags,
        "mode": mode,
        "parent": None if parent is None or isinstance(parent, str) else parent.key,
        "parent_id": parent if isinstance(parent, str) else None,
        "logged_at": logged_at,
        "not_before": not_before,
    }
    if former_key:
        content["former_key"] = former_key
    return "start", content


def start_records(
    *, tags: Mapping[str, Any] | None, run_name: str | None = None, **start: Any
) -> list[Content]:
    """Return the start of a new run, and those of its tags that need another request.

    Args:
        tags: tags of the run, to which those of MLflow's fluent API are added.
        run_name: name of the run; ``mlflow.runName`` in its tags replaces it.
        start: other arguments of ``start_record``.
    """
    texts = as_texts({**context_tags(), **(tags or {})}, MAX_TAG_LENGTH)
    # MLflow rejects a run whose name differs from the one in its tags.
    run_name = texts.pop(MLFLOW_RUN_NAME, run_name)
    first, *others = [*parts_of(texts, MAX_TAGS)] or [{}]
    return [
        start_record(tags=first, run_name=run_name, **start),
        *[("tags", part) for part in others],
    ]


def param_records(params: Mapping[str, Any], kind: str = "params") -> list[Content]:
    """Return params as records of kind ``params`` or ``suggestions``."""
    return [(kind, part) for part in text_parts(params, MAX_PARAM_LENGTH, MAX_PARAMS)]


def tag_records(tags: Mapping[str, Any]) -> list[Content]:
    """Return tags as records."""
    return [("tags", part) for part in text_parts(tags, MAX_TAG_LENGTH, MAX_TAGS)]


def metric_records(metrics: Mapping[str, Any], step: int, time_ms: int) -> list[Content]:
    """Return a point of each metric as records. Skip values that are not numbers."""
    parts = parts_of(as_numbers(metrics), MAX_METRICS)
    return [("metrics", (step, time_ms, part)) for part in parts]


def curve_records(name: str, points: Sequence[tuple[int, float]], time_ms: int) -> list[Content]:
    """Return many points of one metric as records. Skip parts that have other values."""
    records: list[Content] = []
    for first in range(0, len(points), MAX_METRICS):
        with never_raising(f"metric {name!r}"):
            some = points[first : first + MAX_METRICS]
            part = [(integer(step), as_number(value)) for step, value in some]
            records.append(("curve", (as_text(name), time_ms, part)))
    return records


def finish_record(status: str, time_ms: int) -> Content:
    """Return the end of a run, with its status and time in the form that MLflow accepts."""
    return "finish", {"status": status, "time_ms": time_ms}


@functools.cache
def context_tags() -> Mapping[str, str]:
    """Return the tags that MLflow's fluent API sets: user, program, commit."""
    with never_raising("user and program"):
        return {name: text for name, text in resolve_tags().items() if text}
    return {}
