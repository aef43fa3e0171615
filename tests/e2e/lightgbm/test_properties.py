"""With any names, values and params, nothing is lost, nothing is raised and all is reported."""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Run

from lightgbm_helpers import PARAMS, arrays, runs
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud
from own_log import said_by_us

pytestmark = pytest.mark.slow

_NAMES = st.text(min_size=1, max_size=400)
_NUMBERS = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**31), 2**31 - 1).map(np.int64),
)
_GIVEN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9000),
    st.lists(st.integers(), max_size=5),
)
_FEW = settings(
    max_examples=settings().max_examples // 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def experiment(cloud: LocalCloud) -> str:
    """The name of an experiment behind IAP that no other test has."""
    return uuid.uuid4().hex


def _last(experiment: str, run_name: str) -> Run:
    (run,) = (run for run in runs(experiment) if run.info.run_name == run_name)
    return run


def _originals(run: Run) -> dict[str, str]:
    """The original names of metrics and params, by their current names."""
    tag = "mlflow_iap.name."
    return {k.removeprefix(tag): v for k, v in run.data.tags.items() if k.startswith(tag)}


@_FEW
@given(
    metrics=st.lists(
        st.tuples(_NAMES, st.lists(_NUMBERS, min_size=3, max_size=3)),
        min_size=1,
        max_size=6,
        unique_by=lambda metric: metric[0],
    )
)
def test_every_value_of_every_metric_except_nan_arrives(
    experiment: str, metrics: list[tuple[str, list[Any]]]
) -> None:
    rounds = iter(range(3))

    def feval(predicted: np.ndarray, data: lgb.Dataset) -> list[tuple[str, Any, bool]]:
        now = next(rounds)
        return [(name, values[now], True) for name, values in metrics]

    x, y = arrays(rows=40)
    train = lgb.Dataset(x, y)
    run_name = uuid.uuid4().hex
    lgb.train(
        {**PARAMS, "metric": "None"},
        train,
        3,
        valid_sets=[train],
        feval=feval,
        callbacks=[IAPLightGBMCallback(experiment_name=experiment, run_name=run_name)],
    )
    run = _last(experiment, run_name)
    originals = _originals(run)
    client = IAPMlflowClient()
    own = ("best-", "best_", "stopped_", "seconds_")
    found = sorted(
        (point.step, point.value)
        for name in run.data.metrics
        if not (originals.get(name, name)).startswith(own)
        for point in client.get_metric_history(run.info.run_id, name)
    )
    numbers = [(step, float(v)) for _, values in metrics for step, v in enumerate(values)]
    largest = 1.7976931348623157e308  # what MLflow stores for infinity
    expected = sorted(
        (step, max(-largest, min(largest, number)))
        for step, number in numbers
        if not math.isnan(number)
    )
    assert found == expected
    skipped = int(run.data.tags.get("mlflow_iap.skipped_nan_points", "0"))
    assert skipped == sum(math.isnan(number) for _, number in numbers)
    assert run.info.status == "FINISHED"


@_FEW
@given(given_params=st.dictionaries(_NAMES, _GIVEN, max_size=6))
def test_every_param_arrives_no_matter_what_it_is(
    experiment: str, given_params: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run_name = uuid.uuid4().hex
    callback = IAPLightGBMCallback(experiment_name=experiment, run_name=run_name)
    x, y = arrays(rows=40)
    train = lgb.Dataset(x, y)
    booster = lgb.Booster(PARAMS, train)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        # LightGBM itself accepts only a few of these.
        callback(_env(booster, given_params))
        callback.close()
        run = _last(experiment, run_name)
    originals = _originals(run)
    found = {originals.get(name, name): value for name, value in run.data.params.items()}
    for name, value in given_params.items():
        text = str(value).encode(errors="replace").decode()[:6000]
        name = name.encode(errors="replace").decode()
        assert text in {found.get(name), found.get(f"given.{name}")}
    assert not said_by_us(caplog)


def _env(booster: lgb.Booster, params: dict[str, Any]) -> Any:
    from lightgbm.callback import CallbackEnv

    return CallbackEnv(booster, params, 0, 0, 1, [])


@_FEW
@given(sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 30)))
def test_any_number_of_data_sets_metrics_and_rounds_arrives(
    experiment: str, sizes: tuple[int, int, int]
) -> None:
    data_sets, metrics, rounds = sizes

    def feval(predicted: np.ndarray, data: lgb.Dataset) -> list[tuple[str, float, bool]]:
        return [(f"m{number}", float(number), True) for number in range(metrics)]

    x, y = arrays(rows=40)
    train = lgb.Dataset(x, y)
    others = [lgb.Dataset(x, y, reference=train) for _ in range(data_sets - 1)]
    run_name = uuid.uuid4().hex
    lgb.train(
        {**PARAMS, "metric": "None"},
        train,
        rounds,
        valid_sets=[train, *others],
        feval=feval,
        callbacks=[IAPLightGBMCallback(experiment_name=experiment, run_name=run_name)],
    )
    run = _last(experiment, run_name)
    curves = [name for name in run.data.metrics if "-m" in name and not name.startswith("best-")]
    assert len(curves) == data_sets * metrics
    client = IAPMlflowClient()
    for name in curves[:: max(1, len(curves) // 5)]:
        history = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in history] == list(range(rounds))
