"""What a LightGBM run has besides its curves: params, data sets, importance, plots, the model."""

from __future__ import annotations

import csv
import json
import logging
import os
import pty
from pathlib import Path
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import pandas as pd
import pytest
from lightgbm.callback import CallbackEnv
from mlflow.entities import Run
from scipy.sparse import csr_matrix

import python_process
from lightgbm_helpers import PARAMS, arrays, curves, models, points, runs, sets, the_run
from lightgbm_helpers import inputs as data_sets
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud


def _files(run: Run) -> set[str]:
    found = IAPMlflowClient().list_artifacts(run.info.run_id, "lightgbm")
    return {Path(file.path).name for file in found}


def _text(run: Run, file: str, folder: Path) -> str:
    client = IAPMlflowClient()
    return Path(
        client.download_artifacts(run.info.run_id, f"lightgbm/{file}", str(folder))
    ).read_text()


def _frame() -> tuple[pd.DataFrame, np.ndarray]:
    x, y = arrays()
    frame = pd.DataFrame(x, columns=["age", "height", "weight", "pulse"])
    frame["colour"] = pd.Categorical(np.where(x[:, 1] > 0, "red", "green"))
    return frame, y


def test_params_include_those_that_lightgbm_used_and_those_given(
    cloud: LocalCloud, name: str
) -> None:
    given = {
        "objective": "mse",
        "metric": ["mae", "rmse"],
        "eta": 0.0123456789,
        "num_leaf": 7,
        "bagging_fraction": 1,
        "min_data_in_leaf": 3,
        "verbosity": -1,
        "force_col_wise": True,
    }
    lgb.train(given, sets()[0], 3, callbacks=[IAPLightGBMCallback(experiment_name=name)])
    params = the_run(name).data.params
    used = {
        "objective": "regression",
        "metric": "l1,rmse",
        "learning_rate": "0.0123456789",
        "num_leaves": "7",
        "min_data_in_leaf": "3",
        "num_iterations": "3",
        "boosting": "gbdt",
        "lambda_l2": "0",
        "force_col_wise": "True",
    }
    assert used.items() <= params.items()
    own = {"eta": "0.0123456789", "num_leaf": "7", "given.objective": "mse"}
    assert own.items() <= params.items()
    assert params["given.metric"] == "['mae', 'rmse']"
    assert not {"machines", "gpu_platform_id", "data"} & params.keys()


def test_data_sets_are_inputs_with_shape_features_and_digest(cloud: LocalCloud, name: str) -> None:
    frame, y = _frame()

    def train(labels: np.ndarray) -> None:
        data = lgb.Dataset(frame[:120], labels[:120])
        held = lgb.Dataset(frame[120:], labels[120:], reference=data)
        callback = IAPLightGBMCallback(experiment_name=name)
        lgb.train(PARAMS, data, 2, valid_sets=[data, held], callbacks=[callback])

    train(y)
    train(y)
    train(1 - y)
    inputs = [
        {each.dataset.name: (each.dataset, each.tags[0].value) for each in data_sets(run)}
        for run in runs(name)
    ]
    data, context = inputs[0]["training"]
    assert context == "training"
    profile = json.loads(data.profile or "")
    assert (profile["num_rows"], profile["num_features"]) == (120, 5)
    assert profile["categorical_features"] == ["colour"]
    columns = json.loads(data.schema or "")["mlflow_colspec"]
    assert [column["name"] for column in columns] == list(frame.columns)
    held, context = inputs[0]["valid_1"]
    assert context == "validation"
    assert json.loads(held.profile or "")["num_rows"] == 80
    digests = [found["training"][0].digest for found in inputs]
    assert digests[0] == digests[1] != digests[2]


def test_data_sets_are_left_out_on_request(cloud: LocalCloud, name: str) -> None:
    callback = IAPLightGBMCallback(experiment_name=name, log_datasets=False)
    lgb.train(PARAMS, sets()[0], 2, callbacks=[callback])
    assert not data_sets(the_run(name))


@pytest.mark.slow
def test_sparse_data_of_many_columns_stays_sparse(cloud: LocalCloud, name: str) -> None:
    rng = np.random.default_rng(0)
    wide = 200_000  # as a dense array it would take 800 MB
    places = rng.integers(0, wide, 5000)
    x = csr_matrix((np.ones(5000), (rng.integers(0, 500, 5000), places)), shape=(500, wide))
    y = rng.integers(0, 2, 500)
    with IAPLightGBMCallback(experiment_name=name, log_model=False) as callback:
        data = lgb.Dataset(x, y)
        lgb.train({**PARAMS, "min_data_in_leaf": 1}, data, 3, callbacks=[callback])
    run = the_run(name)
    profile = json.loads(data_sets(run)[0].dataset.profile or "")
    assert (profile["num_rows"], profile["num_features"]) == (500, wide)
    assert "feature_importance.png" in _files(run)


def test_a_finished_booster_has_importance_plots_and_a_model(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    frame, y = _frame()
    data = lgb.Dataset(frame[:120], y[:120])
    held = lgb.Dataset(frame[120:], y[120:], reference=data)
    registered = f"model-{name}"
    with IAPLightGBMCallback(
        experiment_name=name, registered_model_name=registered, log_trees=2
    ) as callback:
        stop = lgb.early_stopping(5, verbose=False)
        booster = lgb.train(PARAMS, data, 100, valid_sets=[data, held], callbacks=[stop, callback])
        callback.finish(booster, X=frame[120:], y=y[120:])
    run = the_run(name)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_iteration"] == booster.best_iteration
    assert _files(run) >= {
        "feature_importance.csv",
        "feature_importance.png",
        "learning_curves.png",
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "trees.csv",
    }
    table = list(csv.DictReader(_text(run, "feature_importance.csv", tmp_path).splitlines()))
    for kind in ("gain", "split"):
        found = {row["feature"]: float(row[kind]) for row in table}
        importance = booster.feature_importance(kind)
        assert found == dict(zip(booster.feature_name(), importance, strict=True))
    counts = list(csv.reader(_text(run, "confusion_matrix.csv", tmp_path).splitlines()))[1:]
    predicted = np.asarray(booster.predict(frame[120:])) > 0.5
    expected = [
        [int(((y[120:] == true) & (predicted == guess)).sum()) for guess in (0, 1)]
        for true in (0, 1)
    ]
    assert [[int(cell) for cell in row[1:]] for row in counts] == expected
    trees = list(csv.DictReader(_text(run, "trees.csv", tmp_path).splitlines()))
    assert {row["tree_index"] for row in trees} == {"0", "1"}
    (output,) = models(run)
    loaded = mlflow.lightgbm.load_model(f"models:/{registered}/1")
    np.testing.assert_array_equal(loaded.predict(frame), booster.predict(frame))
    info = mlflow.models.get_model_info(f"models:/{output.model_id}")
    assert info.run_id == run.info.run_id
    assert info.signature is None  # MLflow has no type for categories
    assert info.saved_input_example_info is not None
    uri = f"models:/{registered}/1/requirements.txt"
    pins = (
        Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path))).read_text().split()
    )
    assert f"lightgbm=={lgb.__version__}" in pins
    assert all("==" in pin for pin in pins)


def test_a_model_is_found_by_its_metrics_and_by_its_data_set(cloud: LocalCloud, name: str) -> None:
    frame, y = _frame()
    data = lgb.Dataset(frame[:120], y[:120])
    held = lgb.Dataset(frame[120:], y[120:], reference=data)
    with IAPLightGBMCallback(experiment_name=name, log_pictures=False) as callback:
        lgb.train(PARAMS, data, 3, valid_sets=[held], valid_names=["held"], callbacks=[callback])
    run = the_run(name)
    client = IAPMlflowClient()
    found = {each.dataset.name: each.dataset for each in data_sets(run)}
    for data_set, metric in (("held", "held-binary_logloss"), ("training", "stopped_iteration")):
        digest = found[data_set].digest
        (model,) = client.search_logged_models(
            [run.info.experiment_id],
            f"metrics.`{metric}` = {run.data.metrics[metric]!r}",
            datasets=[{"dataset_name": data_set, "dataset_digest": digest}],
        )
        assert model.source_run_id == run.info.run_id
    assert [point for _, point in points(run, "held-binary_logloss")][-1:] == [
        run.data.metrics["held-binary_logloss"]
    ]
    assert len(points(run, "held-binary_logloss")) == 3


def test_the_model_is_left_out_on_request(cloud: LocalCloud, name: str) -> None:
    with IAPLightGBMCallback(experiment_name=name, log_model=False) as callback:
        lgb.train(PARAMS, sets()[0], 3, callbacks=[callback])
    assert not models(the_run(name))


def test_a_regression_has_residuals(cloud: LocalCloud, name: str, tmp_path: Path) -> None:
    x, _ = arrays()
    y = x[:, 0] * 3
    callback = IAPLightGBMCallback(experiment_name=name, log_model=False)
    booster = lgb.train(
        {**PARAMS, "objective": "regression"}, lgb.Dataset(x, y), 5, callbacks=[callback]
    )
    callback.finish(booster, X=x, y=y)
    run = the_run(name)
    assert "residuals.png" in _files(run)
    rows = list(csv.reader(_text(run, "residuals.csv", tmp_path).splitlines()))[1:]
    residuals = y - booster.predict(x)
    found = {float(quantile): float(value) for quantile, value in rows}
    assert found == pytest.approx({q: float(np.quantile(residuals, q)) for q in found})


def test_an_estimator_is_evaluated_with_its_own_labels(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    x, y = arrays()
    labels = np.array(["no", "yes", "well"])[np.where(x[:, 1] > 1, 2, y)]
    with IAPLightGBMCallback(experiment_name=name) as callback:
        estimator = lgb.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
        estimator.fit(x, labels, callbacks=[callback])
        callback.finish(estimator, X=x, y=labels)
    run = the_run(name)
    rows = list(csv.reader(_text(run, "confusion_matrix.csv", tmp_path).splitlines()))
    assert rows[0][1:] == ["no", "well", "yes"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == len(x)
    (output,) = models(run)
    for loaded in (mlflow.pyfunc, mlflow.lightgbm):
        predicted = loaded.load_model(f"models:/{output.model_id}").predict(x)
        np.testing.assert_array_equal(predicted, estimator.predict(x))


def test_a_cross_validation_has_the_mean_importance_of_its_folds(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    with IAPLightGBMCallback(experiment_name=name) as callback:
        found: dict[str, Any] = lgb.cv(
            PARAMS, sets()[0], 5, nfold=3, return_cvbooster=True, callbacks=[callback]
        )
    run = the_run(name)
    table = csv.DictReader(_text(run, "feature_importance.csv", tmp_path).splitlines())
    gain = {row["feature"]: float(row["gain"]) for row in table}
    folds = np.array(found["cvbooster"].feature_importance("gain"))
    assert list(gain.values()) == pytest.approx(sorted(folds.mean(axis=0), reverse=True))
    assert not models(run)


def test_each_training_run_in_a_with_block_is_finished(cloud: LocalCloud, name: str) -> None:
    with IAPLightGBMCallback(experiment_name=name, log_pictures=False) as callback:
        for _ in range(2):
            lgb.train(PARAMS, sets()[0], 3, callbacks=[callback])
    found = runs(name)
    assert [run.info.status for run in found] == ["FINISHED"] * 2
    assert [len(models(run)) for run in found] == [1, 1]


def test_an_exception_after_training_fails_its_run_but_keeps_its_model(
    cloud: LocalCloud, name: str
) -> None:
    def train_and_raise() -> None:
        with IAPLightGBMCallback(experiment_name=name) as callback:
            lgb.train(PARAMS, sets()[0], 3, callbacks=[callback])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_and_raise()
    run = the_run(name)
    assert run.info.status == "FAILED"
    assert len(models(run)) == 1


def test_training_that_raises_in_a_with_block_fails_its_run_without_a_model(
    cloud: LocalCloud, name: str
) -> None:
    def stop(env: CallbackEnv) -> None:
        raise ZeroDivisionError

    def train() -> None:
        with IAPLightGBMCallback(experiment_name=name) as callback:
            lgb.train(PARAMS, sets()[0], 3, callbacks=[callback, stop])

    with pytest.raises(ZeroDivisionError):
        train()
    run = the_run(name)
    assert run.info.status == "FAILED"
    assert not models(run)


def test_a_booster_that_was_trained_before_gets_a_run(cloud: LocalCloud, name: str) -> None:
    booster = lgb.train({**PARAMS, "eta": 0.2}, sets()[0], 3)
    callback = IAPLightGBMCallback(experiment_name=name)
    callback.finish(booster)
    run = the_run(name)
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.2"
    assert len(models(run)) == 1


def test_a_finished_model_can_be_logged_to_a_trial_s_run(cloud: LocalCloud, name: str) -> None:
    client = IAPMlflowClient()
    run = client.create_run(client.create_experiment(name))
    callback = IAPLightGBMCallback(run=run.info.run_id)
    booster = lgb.train(PARAMS, sets()[0], 3, callbacks=[callback])
    callback.finish(booster)
    found = the_run(name)
    assert found.info.status == "RUNNING"
    assert len(models(found)) == 1


@pytest.mark.slow
def test_only_the_most_important_features_of_wide_data_are_drawn(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    x, y = arrays(features=2000)
    with IAPLightGBMCallback(experiment_name=name, log_model=False) as callback:
        lgb.train(PARAMS, lgb.Dataset(x, y), 3, callbacks=[callback])
    run = the_run(name)
    table = list(csv.DictReader(_text(run, "feature_importance.csv", tmp_path).splitlines()))
    assert len(table) == 2000
    path = IAPMlflowClient().download_artifacts(
        run.info.run_id, "lightgbm/feature_importance.png", str(tmp_path)
    )
    height = int.from_bytes(Path(path).read_bytes()[20:24], "big")
    assert height < 1500


def test_what_cannot_be_logged_is_reported_and_the_rest_is_logged(
    cloud: LocalCloud, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = arrays()
    callback = IAPLightGBMCallback(experiment_name=name)
    booster = lgb.train(PARAMS, lgb.Dataset(x, y), 3, callbacks=[callback])
    with caplog.at_level(logging.WARNING):
        callback.finish(booster, X=x[:, :2], y=y)
    run = the_run(name)
    assert "Could not log the predictions of a LightGBM model" in caplog.text
    assert "feature_importance.png" in _files(run)
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_terminal_shows_what_is_being_logged(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import lightgbm as lgb, numpy as np\n"
        "from mlflow_iap_callbacks import IAPLightGBMCallback\n"
        f"with IAPLightGBMCallback(experiment_name={name!r}) as callback:\n"
        "    x = np.random.default_rng(0).normal(size=(200, 4))\n"
        "    data = lgb.Dataset(x, x[:, 0] > 0)\n"
        "    lgb.train({'verbosity': -1}, data, 3, callbacks=[callback])\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with python_process.start(str(script), environment=environment, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert b"LightGBM: logging the model" in shown
    assert curves(the_run(name)) == {}
