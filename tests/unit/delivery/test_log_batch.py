"""The content of one request: MLflow's limits, and the names and values that it accepts or rejects.

The end-to-end tests use a real server; here, a client records the requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from mlflow_iap_callbacks.delivery.clock import Clock
from mlflow_iap_callbacks.delivery.mlflow_calls import MlflowCalls
from mlflow_iap_callbacks.delivery.names import mlflow_name
from mlflow_iap_callbacks.outbox import Outbox, QueuedRun, Refusal


@dataclass
class _Request:
    metrics: Sequence[Metric]
    params: Sequence[Param]
    tags: Sequence[RunTag]

    def size(self) -> int:
        entities = [*self.metrics, *self.params, *self.tags]
        return len(json.dumps([dict(entity) for entity in entities]))

    def points(self) -> list[tuple[str, int, int, float]]:
        return [(m.key, m.step, m.timestamp, m.value) for m in self.metrics]

    def named_params(self) -> dict[str, str]:
        return {param.key: param.value for param in self.params}

    def named_tags(self) -> dict[str, str]:
        return {tag.key: tag.value for tag in self.tags}


@dataclass
class _Recorder:
    requests: list[_Request] = field(default_factory=list)

    def get_run(self, run_id: str) -> Any:
        assert run_id == "id"
        return SimpleNamespace(data=SimpleNamespace(metrics={}, params={}, tags={}))

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> None:
        assert run_id == "id"
        assert metrics or params or tags
        self.requests.append(_Request(metrics, params, tags))


class _Line:
    """A run with its requests and refusals."""

    def __init__(self) -> None:
        self.outbox = Outbox(None, "http://server")
        self.run: QueuedRun = self.outbox.begin("key", "experiment", run_id="id")
        self.refused: list[Refusal] = []
        self._recorder = _Recorder()
        self._calls = MlflowCalls(cast(MlflowClient, self._recorder), Clock())

    def metrics(self, step: int, **values: Any) -> None:
        self.outbox.intake.append(self.run.number, "metrics", (step, 1000 + step, values))

    def params(self, values: dict[str, str]) -> None:
        self.outbox.intake.append(self.run.number, "params", values)

    def tags(self, values: dict[str, str]) -> None:
        self.outbox.intake.append(self.run.number, "tags", values)

    def deliver(self) -> list[_Request]:
        self.outbox.collect()
        while records := self.outbox.read(self.run, self.outbox.last_seq):
            done, refused = self._calls.send(self.run, records)
            assert list(done) == records[: len(done)]
            self.outbox.settle(self.run, done, refused)
            self.refused += refused
        return self._recorder.requests


@pytest.fixture
def line() -> Iterator[_Line]:
    line = _Line()
    yield line
    line.outbox.close()


def _assert_within_limits(requests: Sequence[_Request]) -> None:
    for request in requests:
        counts = [len(request.metrics), len(request.params), len(request.tags)]
        assert counts[0] <= 1000
        assert counts[1] <= 100
        assert counts[2] <= 100
        assert sum(counts) <= 1000
        assert request.size() <= 1_000_000


def test_points_are_sent_in_order_and_at_most_a_thousand_per_request(line: _Line) -> None:
    for step in range(2500):
        line.metrics(step, a=step / 7, b=-step)
    requests = line.deliver()
    _assert_within_limits(requests)
    assert len(requests) <= 6
    found = [point for request in requests for point in request.points()]
    assert found == [
        point
        for step in range(2500)
        for point in (("a", step, 1000 + step, step / 7), ("b", step, 1000 + step, -step))
    ]


@pytest.mark.parametrize("kind", ["params", "tags"])
def test_at_most_a_hundred_params_and_tags_are_sent_per_request(line: _Line, kind: str) -> None:
    given = {f"{kind}{n}": str(n) for n in range(250)}
    for name, value in given.items():
        getattr(line, kind)({name: value})
    requests = line.deliver()
    _assert_within_limits(requests)
    assert len(requests) == 3
    found: dict[str, str] = {}
    for request in requests:
        found |= getattr(request, f"named_{kind}")()
    assert found == given


def test_at_most_a_thousand_entities_of_all_kinds_are_sent_per_request(line: _Line) -> None:
    for n in range(90):
        line.params({f"p{n}": "x"})
        line.tags({f"t{n}": "x"})
        line.metrics(n, **{f"m{i}": i for i in range(20)})
    requests = line.deliver()
    _assert_within_limits(requests)
    assert len(requests) <= 3
    assert sum(len(request.metrics) for request in requests) == 1800
    assert sum(len(request.params) for request in requests) == 90
    assert sum(len(request.tags) for request in requests) == 90


@pytest.mark.parametrize(("kind", "longest"), [("params", 6000), ("tags", 8000)])
def test_a_request_has_at_most_about_a_megabyte(line: _Line, kind: str, longest: int) -> None:
    for n in range(300):
        getattr(line, kind)({f"{n:0>250}": "x" * longest})
        line.metrics(n, **{"m" * 240 + str(i): math.pi for i in range(8)})
    requests = line.deliver()
    _assert_within_limits(requests)
    assert len(requests) <= 8
    assert sum(len(getattr(request, kind)) for request in requests) == 300


@pytest.mark.parametrize("most", [100, 1000])
def test_many_unusual_names_at_once_stay_within_the_limits(line: _Line, most: int) -> None:
    line.metrics(0, **{f"ndcg@{n}": 0.5 for n in range(most)})
    requests = line.deliver()
    _assert_within_limits(requests)
    assert sum(len(request.metrics) for request in requests) == most


def test_a_param_that_is_logged_twice_is_sent_once(line: _Line) -> None:
    line.params({"p": "1", "q": "1"})
    line.metrics(0, m=0.5)
    line.params({"p": "1", "r": "1"})
    (request,) = line.deliver()
    assert request.named_params() == {"p": "1", "q": "1", "r": "1"}
    assert len(request.params) == 3


def test_a_changed_param_is_sent_in_a_separate_request(line: _Line) -> None:
    line.params({"p": "1"})
    line.metrics(0, m=0.5)
    line.params({"p": "2", "q": "1"})
    line.metrics(1, m=0.5)
    first, second = line.deliver()
    assert (first.named_params(), second.named_params()) == ({"p": "1"}, {"p": "2", "q": "1"})
    assert [len(request.metrics) for request in (first, second)] == [1, 1]


def test_the_last_value_of_a_changed_tag_is_sent(line: _Line) -> None:
    line.tags({"t": "1"})
    line.tags({"t": "2"})
    (request,) = line.deliver()
    assert (request.named_tags(), len(request.tags)) == ({"t": "2"}, 1)


def test_a_changed_name_has_the_original_in_a_tag(line: _Line) -> None:
    line.metrics(0, **{"ndcg@1": 0.5, "plain": 0.5})
    line.params({"p@1": "1"})
    line.tags({"t@1": "text"})
    (request,) = line.deliver()
    taken = {name: mlflow_name(name) for name in ("ndcg@1", "p@1", "t@1")}
    assert [point[0] for point in request.points()] == [taken["ndcg@1"], "plain"]
    assert request.named_params() == {taken["p@1"]: "1"}
    assert request.named_tags() == {
        taken["t@1"]: "text",
        **{f"mlflow_iap.name.{name}": original for original, name in taken.items()},
    }


def test_nan_is_left_out_and_counted_across_requests(line: _Line) -> None:
    line.metrics(0, a=math.nan, b=1.0)
    line.metrics(1, a=0.5, b=math.inf)
    line.metrics(2, a="nan", b=-math.inf)
    (first,) = line.deliver()
    assert first.points() == [
        ("b", 0, 1000, 1.0),
        ("a", 1, 1001, 0.5),
        ("b", 1, 1001, math.inf),
        ("b", 2, 1002, -math.inf),
    ]
    assert first.named_tags() == {"mlflow_iap.skipped_nan_points": "2"}
    line.metrics(3, a=math.nan)
    _, second = line.deliver()
    assert (second.points(), second.named_tags()) == ([], {"mlflow_iap.skipped_nan_points": "3"})
    assert (line.run.skipped, line.refused) == (3, [])


@pytest.mark.parametrize("value", [None, "abc", [1.0], {"a": 1.0}])
def test_only_a_value_that_is_not_a_number_is_rejected(line: _Line, value: object) -> None:
    line.metrics(0, a=0.5)
    line.metrics(1, a=value, b=1.0)
    line.metrics(2, a=1.5)
    (request,) = line.deliver()
    assert request.points() == [("a", 0, 1000, 0.5), ("b", 1, 1001, 1.0), ("a", 2, 1002, 1.5)]
    ((kind, content, reason),) = line.refused
    assert (kind, content) == ("metrics", (1, 1001, {"a": value}))
    assert reason


def test_no_request_is_sent_if_nothing_is_left_to_send(line: _Line) -> None:
    line.metrics(0, a=None)
    line.metrics(1)
    assert line.deliver() == []
    assert line.outbox.waiting == 0


@pytest.mark.parametrize("value", ["1.5", True, 3])
def test_a_value_that_can_be_converted_to_a_number_is_logged(line: _Line, value: object) -> None:
    line.metrics(0, a=value)
    (request,) = line.deliver()
    assert request.points() == [("a", 0, 1000, float(value))]  # type: ignore[arg-type]


def test_other_records_wait_for_those_before_them(line: _Line) -> None:
    line.metrics(0, a=0.5)
    content = {"path": "/nowhere", "is_copied": False, "to": None}
    line.outbox.intake.append(line.run.number, "artifact", content)
    line.metrics(1, a=0.5)
    with pytest.raises(AttributeError):  # this client accepts no artifacts
        line.deliver()
    (request,) = line._recorder.requests
    assert request.points() == [("a", 0, 1000, 0.5)]
    assert line.outbox.waiting == 2
