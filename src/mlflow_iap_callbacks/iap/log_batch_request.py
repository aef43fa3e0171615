"""The request of ``log_batch``, encoded without MLflow's entities and protobuf messages.

MLflow's client copies each metric, converts it to protobuf, then to a dict, to indented JSON, to a
dict again and to JSON. This takes more processor time than all other steps from ``log_metrics`` to
the server combined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import verify_rest_response

from ..limits import MAX_ENTITIES, MAX_INTEGER, MAX_PARAMS, MAX_TAGS
from .json_post import post_json

_ENDPOINT = "/api/2.0/mlflow/runs/log-batch"
# JSON has no such numbers.
_NOT_FINITE = {"inf": '"Infinity"', "-inf": '"-Infinity"', "nan": '"NaN"'}
# A metric's key, value, timestamp and step, in place of MLflow's ``Metric``. It is a plain tuple,
# because Python's garbage collector stops to look at those that contain only texts and numbers.
Point = tuple[str, float, int, int]
_json = json.JSONEncoder(ensure_ascii=False).encode


def send_log_batch(
    store: object,
    run_id: str,
    metrics: Sequence[Metric | Point],
    params: Sequence[Param],
    tags: Sequence[RunTag],
) -> bool:
    """Send what MLflow's client would send, in one request.

    Returns:
        Whether it was sent. Leave everything else to MLflow: stores that are not servers, and what
        ``log_batch_body`` returns None for.

    Raises:
        MlflowException: as MLflow's client does.
    """
    if not isinstance(store, RestStore) or mlflow.get_active_model_id() is not None:
        return False
    body = log_batch_body(run_id, metrics, params, tags)
    if body is None:
        return False
    # Versions of MLflow before workspaces do not have this method.
    check = getattr(store, "_validate_workspace_support_if_specified", None)
    if check is not None:
        check()
    verify_rest_response(post_json(store.get_host_creds(), _ENDPOINT, body), _ENDPOINT)
    return True


def log_batch_body(
    run_id: str,
    metrics: Sequence[Metric | Point],
    params: Sequence[Param],
    tags: Sequence[RunTag],
) -> bytes | None:
    """Return the body of the one request that MLflow's client would send.

    It is None for everything unusual: what MLflow's client sends in several requests or not at all,
    values of other types than its documentation names, and metrics of models and data sets.
    """
    count = len(metrics) + len(params) + len(tags)
    if not 0 < count <= MAX_ENTITIES or len(params) > MAX_PARAMS or len(tags) > MAX_TAGS:
        return None
    parts = {"metrics": _points(metrics), "params": _texts(params), "tags": _texts(tags)}
    if type(run_id) is not str or None in parts.values():
        return None
    members = [f'"{name}":[{part}]' for name, part in parts.items() if part]
    try:
        return f'{{"run_id":{_json(run_id)},{",".join(members)}}}'.encode()
    except UnicodeEncodeError:
        return None


def _points(metrics: Sequence[Metric | Point]) -> str | None:
    """Return the JSON of metrics without brackets; None if one is unusual."""
    if not metrics:
        return ""
    points: Sequence[Any] = metrics
    if {*map(type, points)} != {tuple}:
        if any(type(each) is not Metric or _has_origin(each) for each in points):
            return None
        points = [(each.key, each.value, each.timestamp, each.step) for each in points]
    keys, values, timestamps, steps = zip(*points, strict=True)
    is_usual = {*map(type, keys)} == {str} and _are_integers(timestamps) and _are_integers(steps)
    if not is_usual or not {*map(type, values)} <= {float, int}:
        return None
    try:
        numbers = [*map(float, values)]
    except OverflowError:
        return None
    texts: Sequence[object] = numbers
    if not math.isfinite(sum(numbers)):
        texts = [_number(value) for value in numbers]
    names = {key: _json(key) for key in {*keys}}
    return ",".join(
        [
            f'{{"key":{names[key]},"value":{text},"timestamp":{timestamp},"step":{step}}}'
            for key, text, timestamp, step in zip(keys, texts, timestamps, steps, strict=True)
        ]
    )


def _texts(entities: Sequence[Param] | Sequence[RunTag]) -> str | None:
    """Return the JSON of params or tags without brackets; None if one is unusual."""
    pairs = [(entity.key, entity.value) for entity in entities]
    if not all(type(key) is type(value) is str for key, value in pairs):
        return None
    return ",".join([f'{{"key":{_json(key)},"value":{_json(value)}}}' for key, value in pairs])


def _number(value: float) -> str:
    """Return the JSON of a number; for NaN and infinity, the text that protobuf writes."""
    return repr(value) if math.isfinite(value) else _NOT_FINITE[repr(value)]


def _are_integers(values: Sequence[Any]) -> bool:
    """Return whether all values are integers of 64 bits."""
    is_plain = {*map(type, values)} == {int}
    return is_plain and min(values) >= -MAX_INTEGER and max(values) <= MAX_INTEGER


def _has_origin(metric: Any) -> bool:
    """Return whether a metric belongs to a model or a data set."""
    return any((metric.model_id, metric.dataset_name, metric.dataset_digest, metric.run_id))
