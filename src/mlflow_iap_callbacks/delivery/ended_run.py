"""Logs a run that has already ended, in less time than with a run handle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from ..limits import MAX_METRICS, MAX_PARAM_LENGTH, MAX_PARAMS, MAX_TAGS
from .lifecycle import sender_for
from .run_records import (
    Content,
    context_tags,
    curve_records,
    finish_record,
    metric_records,
    param_records,
    start_record,
    start_records,
)

# The process may be exiting, and close the journal at the same moment.
_TRIES = 2
# Types of values that a journal returns unchanged, and whose texts can be made later.
_PLAIN = {str, int, float, bool, type(None)}

# What a run contains besides its tags: suggested params (see ``RunWriter.log_suggestions``);
# metrics at step 0; and curves, each with the step and value of its points.
Results = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Sequence[tuple[int, float]]]]


def log_ended_run(
    client: MlflowClient,
    experiment: str,
    results: Results,
    *,
    tags: Mapping[str, Any],
    status: str,
    end_time: int,
    **start: Any,
) -> None:
    """Append all records of a new run at once, so that a kill cannot leave a part of them.

    Args:
        client: delivers the run.
        experiment: the experiment, as ``name:NAME`` or ``id:ID``.
        results: what the run contains.
        tags: tags of the run.
        status: FINISHED, FAILED or KILLED.
        end_time: the run's end, and the time of all metrics, in milliseconds since 1970, UTC.
        start: other arguments of ``start_records``.

    Raises:
        OSError: the journal is closed.
    """
    suggestions, metrics, curves = results
    rest: list[Content] = []
    for name, points in curves.items():
        rest += curve_records(name, points, end_time)
    rest.append(finish_record(status, end_time))
    for _ in range(_TRIES):
        sender = sender_for(client)
        start |= {"experiment": experiment, "logged_at": sender.clock.time()}
        try:
            usual = _usual_records(suggestions, metrics, tags, end_time, start)
            if usual and sender.append_run([*usual, *rest]):
                return
        except (ValueError, OverflowError):
            pass  # UTF-8 cannot encode a text, or an integer is too large
        records = start_records(tags=tags, **start)
        records += param_records(suggestions, "suggestions")
        records += metric_records(metrics, 0, end_time)
        if sender.append_run([*records, *rest]):
            return
    raise OSError("the journal is closed")


def _usual_records(
    suggestions: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tags: Mapping[str, Any],
    time_ms: int,
    start: Mapping[str, Any],
) -> list[Content]:
    """Return records whose values are not converted to texts yet; none for unusual values.

    Training fills the processor's caches, so each function that is called here takes
    microseconds. The outbox converts these values when it reads them.
    """
    all_tags = {**context_tags(), **tags}
    values = (*all_tags.values(), *suggestions.values())
    names = (*all_tags, *suggestions, *metrics)
    if not (
        _PLAIN.issuperset(map(type, values))
        and {str}.issuperset(map(type, names))
        and sum(len(value) for value in values if type(value) is str) <= MAX_PARAM_LENGTH
        and {float}.issuperset(map(type, metrics.values()))
        and len(all_tags) <= MAX_TAGS
        and len(suggestions) <= MAX_PARAMS
        and len(metrics) <= MAX_METRICS
        and MLFLOW_RUN_NAME not in all_tags
    ):
        return []
    records = [start_record(tags=all_tags, **start)]
    if suggestions:
        records.append(("suggestions", suggestions))
    if metrics:
        records.append(("metrics", (0, time_ms, metrics)))
    return records
