"""What is logged about a finished model, part by part."""

from __future__ import annotations

import csv
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from lightgbm_helpers import PARAMS, arrays, sets
from mlflow_iap_callbacks.lightgbm.finished_model import FinishedModel, Wanted
from own_log import said_by_us
from recording_run import RecordingRun

_TABLE = "lightgbm/feature_importance.csv"
_SAMPLES: list[tuple[int, Any]] = [(0, {("valid", "loss"): 1.0}), (1, {("valid", "loss"): 0.5})]


@pytest.fixture(scope="module")
def booster() -> lgb.Booster:
    return lgb.train(PARAMS, sets()[0], 3)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments with which MLflow is asked to save a model, without saving it."""
    found: dict[str, Any] = {}

    def save_model(model: lgb.Booster, path: Path, **options: Any) -> None:
        path.mkdir()
        (path / "MLmodel").write_text("flavors: {}")
        found.update(options)

    monkeypatch.setattr(import_module("mlflow.lightgbm"), "save_model", save_model)
    return found


def _wanted(**options: Any) -> Wanted:
    nothing = {"model": False, "registered_model_name": None, "pictures": False, "trees": 0}
    return Wanted(**{**nothing, **options})


def _logged(
    trained: Any,
    *,
    objective: str = "binary",
    estimator: Any = None,
    X: Any = None,
    y: Any = None,
    **options: Any,
) -> RecordingRun:
    run = RecordingRun()
    finished = FinishedModel(run, trained, objective, estimator)
    finished.log(_wanted(**options), _SAMPLES, 1, X=X, y=y)
    return run


def _rows(run: RecordingRun, path: str) -> list[list[str]]:
    return list(csv.reader(run.artifacts[path].decode().splitlines()))


def test_the_importance_of_features_is_a_table_with_the_highest_gain_first(
    booster: lgb.Booster,
) -> None:
    header, *rows = _rows(_logged(booster), _TABLE)
    assert header == ["feature", "gain", "split"]
    gains = [float(gain) for _, gain, _ in rows]
    assert gains == sorted(gains, reverse=True)
    for kind, column in (("gain", 1), ("split", 2)):
        found = {row[0]: float(row[column]) for row in rows}
        names, importance = booster.feature_name(), booster.feature_importance(kind)
        assert found == dict(zip(names, importance, strict=True))


def test_a_cross_validation_has_the_mean_importance_and_neither_model_nor_predictions() -> None:
    result: Any = lgb.cv(PARAMS, sets()[0], 3, nfold=3, return_cvbooster=True)
    found = result["cvbooster"]
    x, y = arrays()
    run = _logged(found, model=True, X=x, y=y)
    means = np.mean(found.feature_importance("gain"), axis=0)
    gains = [float(gain) for _, gain, _ in _rows(run, _TABLE)[1:]]
    assert gains == pytest.approx(sorted(means, reverse=True))
    assert run.artifacts.keys() == {_TABLE}
    assert not run.models


def test_plots_are_drawn_on_request(booster: lgb.Booster) -> None:
    x, y = arrays()
    found = _logged(booster, pictures=True, X=x, y=y).artifacts
    pictures = {name: found[name] for name in found if name.endswith(".png")}
    assert pictures.keys() == {
        f"lightgbm/{name}.png"
        for name in ("feature_importance", "learning_curves", "confusion_matrix")
    }
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())


@pytest.mark.parametrize("given", [{"X": True}, {"y": True}, {}])
def test_predictions_need_data_and_true_values(
    booster: lgb.Booster, given: dict[str, bool]
) -> None:
    x, y = arrays()
    data: dict[str, Any] = {name: {"X": x, "y": y}[name] for name in given}
    assert _logged(booster, **data).artifacts.keys() == {_TABLE}


def test_classes_have_a_confusion_matrix(booster: lgb.Booster) -> None:
    x, y = arrays()
    header, *rows = _rows(_logged(booster, X=x, y=y), "lightgbm/confusion_matrix.csv")
    assert header == ["true \\ predicted", "0", "1"]
    predicted = np.asarray(booster.predict(x)) > 0.5
    for true, row in enumerate(rows):
        expected = [int(((y == true) & (predicted == guess)).sum()) for guess in (0, 1)]
        assert row == [str(true), *map(str, expected)]


def test_an_estimator_is_compared_with_its_own_labels() -> None:
    x, y = arrays()
    labels = np.array(["no", "yes", "well"])[np.where(x[:, 1] > 1, 2, y)]
    estimator = lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(x, labels)
    options: dict[str, Any] = {
        "objective": "multiclass",
        "X": x,
        "y": labels,
        "estimator": estimator,
    }
    header, *rows = _rows(_logged(estimator.booster_, **options), "lightgbm/confusion_matrix.csv")
    assert header[1:] == [row[0] for row in rows] == ["no", "well", "yes"]
    assert sum(int(cell) for row in rows for cell in row[1:]) == len(x)


def test_a_booster_of_several_classes_predicts_the_most_probable_one() -> None:
    x, y = arrays()
    classes = np.where(x[:, 1] > 1, 2, y)
    params = {**PARAMS, "objective": "multiclass", "num_class": 3}
    model = lgb.train(params, lgb.Dataset(x, classes), 3)
    _, *rows = _rows(
        _logged(model, objective="multiclass", X=x, y=classes), "lightgbm/confusion_matrix.csv"
    )
    predicted = np.asarray(model.predict(x)).argmax(axis=1)
    right = [int(row[1 + number]) for number, row in enumerate(rows)]
    assert sum(right) == int((predicted == classes).sum())


def test_a_regression_has_quantiles_of_its_residuals() -> None:
    x, _ = arrays()
    y = x[:, 0] * 3
    model = lgb.train({**PARAMS, "objective": "regression"}, lgb.Dataset(x, y), 3)
    run = _logged(model, objective="regression", X=x, y=y)
    residuals = y - np.asarray(model.predict(x))
    found = {float(q): float(value) for q, value in _rows(run, "lightgbm/residuals.csv")[1:]}
    assert found == pytest.approx({q: float(np.quantile(residuals, q)) for q in found})
    assert set(found) >= {0.0, 0.5, 1.0}


def test_an_objective_of_another_kind_is_not_compared(booster: lgb.Booster) -> None:
    x, y = arrays()
    assert _logged(booster, objective="lambdarank", X=x, y=y).artifacts.keys() == {_TABLE}


def test_the_requested_number_of_trees_is_a_table(booster: lgb.Booster) -> None:
    run = _logged(booster, trees=2)
    header, *rows = _rows(run, "lightgbm/trees.csv")
    assert {row[header.index("tree_index")] for row in rows} == {"0", "1"}


def test_the_model_is_saved_under_the_name_that_it_is_registered_with(
    booster: lgb.Booster, saved: dict[str, Any]
) -> None:
    x, _ = arrays()
    run = _logged(booster, model=True, registered_model_name="churn", X=x)
    assert run.models == [({"MLmodel"}, "churn")]
    assert len(saved["input_example"]) == 5
    assert f"lightgbm=={lgb.__version__}" in saved["pip_requirements"]
    assert all("==" in pin for pin in saved["pip_requirements"])


_FILES = {_TABLE, "lightgbm/trees.csv", "lightgbm/confusion_matrix.csv"} | {
    f"lightgbm/{name}.png" for name in ("feature_importance", "learning_curves", "confusion_matrix")
}
_PARTS = {
    "the feature importance": (
        "{0}.finished_model._write_table",
        [_TABLE, "lightgbm/confusion_matrix.csv", "lightgbm/confusion_matrix.png"],
    ),
    "the plot of the feature importance": (
        "{0}.plots.draw_importance",
        ["lightgbm/feature_importance.png"],
    ),
    "the plot of the learning curves": (
        "{0}.plots.draw_curves",
        ["lightgbm/learning_curves.png"],
    ),
    "the predictions": ("{0}.plots.draw_confusion", ["lightgbm/confusion_matrix.png"]),
    "the trees": ("lightgbm.Booster.trees_to_dataframe", ["lightgbm/trees.csv"]),
    "the model": ("{0}.saved_model.version", []),  # the model's requirements
}


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("part", _PARTS)
def test_a_part_that_cannot_be_logged_is_a_warning_and_the_other_parts_are_logged(
    booster: lgb.Booster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
) -> None:
    for target in ("draw_importance", "draw_curves", "draw_confusion"):
        monkeypatch.setattr(f"mlflow_iap_callbacks.lightgbm.plots.{target}", _draw)
    x, y = arrays()
    everything: dict[str, Any] = {"model": True, "pictures": True, "trees": 1, "X": x, "y": y}
    target, files = _PARTS[part]
    monkeypatch.setattr(target.format("mlflow_iap_callbacks.lightgbm"), _no_space)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        run = _logged(booster, **everything)
    # Both are tables.
    parts = [part, "the predictions"] if part == "the feature importance" else [part]
    assert [message.partition(" of a LightGBM")[0] for message in said_by_us(caplog)] == [
        f"Could not log {each}" for each in parts
    ]
    assert run.artifacts.keys() == _FILES - {*files}
    assert len(run.models) == (0 if part == "the model" else 1)


def _draw(*given: Any) -> None:
    given[-1].write_bytes(b"a plot")


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError("no space left")
