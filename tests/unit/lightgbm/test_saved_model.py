"""A saved model predicts the same when it is loaded, whatever form its data had."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightgbm_helpers import PARAMS, arrays
from lightgbm_inputs import FORMS, Y, in_memory
from mlflow_iap_callbacks.lightgbm.saved_model import save
from own_log import said_by_us


def _booster(data: Any) -> lgb.Booster:
    is_file = isinstance(data, str)
    train = lgb.Dataset(data) if is_file else lgb.Dataset(data, Y)
    return lgb.train(PARAMS, train, 3)


def _same(saved: Path, flavor: Any, data: Any, expected: Any) -> bool:
    loaded = (mlflow.pyfunc.load_model(str(saved)), flavor.load_model(str(saved)))
    return all(np.array_equal(each.predict(data), expected) for each in loaded)


# MLflow takes seconds to import what it saves estimators with: those tests are slow.
_QUICK = ("pandas: int64", "pandas: category of str", "scipy: csr_array", "pyarrow: Table")


@pytest.mark.filterwarnings("ignore:Converting data to scipy sparse matrix")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in FORMS],
)
def test_a_loaded_booster_predicts_the_same_for_its_training_data(
    name: str, tmp_path: Path
) -> None:
    form = FORMS[name]
    data = form.make(tmp_path)
    booster = _booster(data)
    again = form.make(tmp_path)  # LightGBM 4.5 changes a list of arrays
    predictable = in_memory(again)
    expected = booster.predict(predictable)
    for given in (again, None):
        folder = tmp_path / str(given is None)
        folder.mkdir()
        saved = save(booster, None, given, folder)
        assert _same(saved, mlflow.lightgbm, predictable, expected)
        assert (Model.load(str(saved)).signature is not None) == (
            form.has_signature and given is not None
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pandas: int64", "pandas: category of str", "numpy: float32"])
def test_a_loaded_classifier_predicts_its_classes(name: str, tmp_path: Path) -> None:
    data = FORMS[name].make(tmp_path)
    estimator = lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    estimator.fit(data, np.array(["heron", "otter"])[Y])
    saved = save(estimator.booster_, estimator, data, tmp_path)
    assert _same(saved, mlflow.lightgbm, data, estimator.predict(data))
    assert list(mlflow.lightgbm.load_model(str(saved)).classes_) == ["heron", "otter"]


def _squares(true: Any, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return predicted - true, np.ones_like(true)


@pytest.mark.slow
def test_an_estimator_with_a_custom_objective_is_saved(tmp_path: Path) -> None:
    x, _ = arrays()
    estimator = lgb.LGBMRegressor(objective=_squares, n_estimators=3, verbose=-1, n_jobs=1)
    estimator.fit(x, x[:, 0])
    saved = save(estimator.booster_, estimator, x, tmp_path)
    assert _same(saved, mlflow.lightgbm, x, estimator.predict(x))


@pytest.mark.slow
def test_a_pipeline_is_saved_with_its_steps(tmp_path: Path) -> None:
    x, y = arrays()
    pipeline = make_pipeline(
        StandardScaler(), lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    ).fit(x * 100, y)
    saved = save(pipeline[-1].booster_, pipeline, x * 100, tmp_path)
    assert _same(saved, mlflow.sklearn, x * 100, pipeline.predict(x * 100))


@pytest.mark.slow
def test_a_model_is_saved_without_an_example_if_mlflow_cannot_write_the_rows(
    tmp_path: Path,
) -> None:
    x, y = arrays()
    frame = pd.DataFrame({"a": x[:, 0], "b": pd.cut(x[:, 1], 3, labels=[1j, 2j, 3j])})
    booster = lgb.train(PARAMS, lgb.Dataset(frame[["a"]], y), 3)
    estimator = _PredictsFrom(booster)
    saved = save(booster, estimator, frame, tmp_path)
    model = Model.load(str(saved))
    assert (model.signature, model.saved_input_example_info) == (None, None)


class _PredictsFrom:
    """An estimator that uses one column of its data."""

    def __init__(self, booster: lgb.Booster) -> None:
        self._booster = booster

    def predict(self, data: pd.DataFrame) -> Any:
        return self._booster.predict(data[["a"]])


@pytest.mark.parametrize("data", [np.zeros((5, 7)), {"a": 1}, object()])
def test_a_model_is_saved_without_an_example_if_it_cannot_predict_the_data(
    data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = arrays()
    booster = lgb.train(PARAMS, lgb.Dataset(x, y), 3)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        saved = save(booster, None, data, tmp_path)
    assert Model.load(str(saved)).saved_input_example_info is None
    assert _same(saved, mlflow.lightgbm, x, booster.predict(x))
    assert len(said_by_us(caplog)) == isinstance(data, np.ndarray)


def test_columns_that_are_not_the_model_s_features_give_no_signature(tmp_path: Path) -> None:
    x, y = arrays()
    booster = lgb.train(PARAMS, lgb.Dataset(x, y), 3)
    saved = save(booster, None, pd.DataFrame(x, columns=list("abcd")), tmp_path)
    assert Model.load(str(saved)).signature is None
    assert _same(saved, mlflow.lightgbm, x, booster.predict(x))


def test_a_model_that_cannot_be_saved_raises_the_first_error(tmp_path: Path) -> None:
    x, y = arrays()
    booster = lgb.train(PARAMS, lgb.Dataset(x, y), 3)
    booster.pandas_categorical = [[pd.Interval(0, 1)]]  # has no text
    with pytest.raises(ValueError, match="Circular"):
        save(booster, None, None, tmp_path)
