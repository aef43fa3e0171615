"""What ``log_batch`` sends, compared with what MLflow's own client sends for the same arguments."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunTag
from mlflow.protos.service_pb2 import LogBatch
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.utils.proto_json_utils import parse_dict

from mlflow_iap_callbacks.iap.log_batch_request import log_batch_body

_RUN = "5f0c"
_INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
_texts = st.text(max_size=8)
_numbers = st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([-0.0, 5e-324, 1e16, 1e22])
_metrics = st.builds(Metric, _texts, _numbers, _INT64, _INT64)
_params = st.builds(Param, _texts, _texts)
_tags = st.builds(RunTag, _texts, _texts)
_POINT = Metric("loss", 0.5, 1_700_000_000_000, 3)


class _Store(RestStore):
    """A store that keeps the bodies of its requests instead of sending them."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def _call_endpoint(self, api: Any, json_body: str = "", *_: Any, **__: Any) -> None:
        assert api is LogBatch
        self.bodies.append(json.loads(json_body))


class _MlflowsClient(TrackingServiceClient):
    def __init__(self) -> None:
        self.kept = _Store()

    @property
    def store(self) -> _Store:
        return self.kept


def _mlflows(*arguments: Any) -> Any:
    """The bodies of the requests of MLflow's own client."""
    client = _MlflowsClient()
    client.log_batch(_RUN, *arguments)
    return client.kept.bodies


def _stored(body: Any) -> bytes:
    """What MLflow's server makes of a body. Unlike ``==``, it knows -0.0 and NaN."""
    message = LogBatch()
    parse_dict(body, message)
    return bytes(message.SerializeToString(deterministic=True))


@settings(deadline=None)
@given(st.lists(_metrics, max_size=9), st.lists(_params, max_size=4), st.lists(_tags, max_size=4))
def test_the_body_means_what_mlflows_own_body_means(
    metrics: list[Metric], params: list[Param], tags: list[RunTag]
) -> None:
    body = log_batch_body(_RUN, metrics, params, tags)
    expected = _mlflows(metrics, params, tags)
    if body is None:
        assert not expected
    else:
        assert json.loads(body) == expected[0]
        assert [_stored(json.loads(body))] == [_stored(each) for each in expected]


def test_points_are_sent_as_metrics() -> None:
    point = ("loss", 0.5, 1_700_000_000_000, 3)
    body = log_batch_body(_RUN, [point], [], [])
    assert body == log_batch_body(_RUN, [_POINT], [], [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_sent_as_text_beside_others_that_stay_numbers(
    value: float,
) -> None:
    metrics = [Metric("a", value, 1, 1), Metric("b", 0.1, 1, 1)]
    body = json.loads(log_batch_body(_RUN, metrics, [], []) or b"")
    assert [metric["value"] for metric in body["metrics"]] == [
        _mlflows(metrics)[0]["metrics"][0]["value"],
        0.1,
    ]


def test_a_sum_beyond_the_largest_number_does_not_change_its_parts() -> None:
    metrics = [Metric("a", 1.7e308, 1, step) for step in range(3)]
    body = json.loads(log_batch_body(_RUN, metrics, [], []) or b"")
    assert [metric["value"] for metric in body["metrics"]] == [1.7e308] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ([], [], []),
        ([_POINT] * 1001, [], []),
        ([_POINT] * 990, [Param("a", "b")] * 11, []),
        ([], [Param("a", "b")] * 101, []),
        ([], [], [RunTag("a", "b")] * 101),
        ([Metric("a", 1.0, 1, 1, model_id="m-1")], [], []),
        ([Metric("a", 1.0, 1, 1, dataset_name="d", dataset_digest="1")], [], []),
        ([Metric("a", 1.0, 1, 1, run_id="r")], [], []),
        ([Metric(1, 1.0, 1, 1)], [], []),  # type: ignore[arg-type]
        ([Metric("a", "1.0", 1, 1)], [], []),  # type: ignore[arg-type]
        ([Metric("a", True, 1, 1)], [], []),
        ([Metric("a", 10**400, 1, 1)], [], []),
        ([Metric("a", 1.0, 1.5, 1)], [], []),  # type: ignore[arg-type]
        ([Metric("a", 1.0, 1, True)], [], []),
        ([Metric("a", 1.0, 2**63, 1)], [], []),
        ([Metric("a", 1.0, 1, -(2**64))], [], []),
        ([Metric("\ud800", 1.0, 1, 1)], [], []),
        ([], [Param("a", 1)], []),  # type: ignore[arg-type]
        ([], [Param("a", "\udfff")], []),
        ([], [], [RunTag("a", None)]),  # type: ignore[arg-type]
        ([object()], [], []),
    ],
)
def test_everything_unusual_is_left_to_mlflows_client(arguments: tuple[Any, ...]) -> None:
    assert log_batch_body(_RUN, *arguments) is None


def test_the_body_has_no_spaces_between_its_parts() -> None:
    body = log_batch_body(_RUN, [_POINT], [Param("a b", "c")], [RunTag("d", "e f")])
    assert body is not None
    assert body.replace(b"a b", b"").replace(b"e f", b"").find(b" ") == -1
