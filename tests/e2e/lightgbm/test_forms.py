"""Every form of LightGBM training: MLflow has what LightGBM recorded, point by point."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import optuna
import pytest
from dask.array import from_array
from distributed import Client, LocalCluster
from optuna_integration import LightGBMPruningCallback
from optuna_integration.lightgbm import LightGBMTuner
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from lightgbm_helpers import (
    PARAMS,
    Recorder,
    arrays,
    curves,
    expected,
    expected_of_cv,
    models,
    points,
    runs,
    sets,
    the_run,
)
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback, IAPMlflowClient
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.local import LocalCloud
from scripts import command
from waiting import wait_until


def _train(
    callback: IAPLightGBMCallback,
    rounds: int = 12,
    *others: Callable[..., Any],
    params: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train and return what LightGBM recorded; its callback comes last, this package's first."""
    train, valid = sets()
    record: dict[str, Any] = {}
    options = {"valid_sets": [train, valid], "valid_names": ["train", "valid"], **options}
    lgb.train(
        {**PARAMS, **(params or {})},
        train,
        rounds,
        callbacks=[callback, *others, lgb.record_evaluation(record)],
        **options,
    )
    return record


def _same(predicted: np.ndarray, data: lgb.Dataset) -> list[tuple[str, float, bool]]:
    return [("mine", float(np.mean(predicted)), True), ("yours", float(np.std(predicted)), False)]


def _other(predicted: np.ndarray, data: lgb.Dataset) -> tuple[str, float, bool]:
    return "other", float(np.max(predicted)), True


def _objective(predicted: np.ndarray, data: lgb.Dataset) -> tuple[np.ndarray, np.ndarray]:
    probability = 1.0 / (1.0 + np.exp(-predicted))
    return probability - data.get_label(), probability * (1.0 - probability)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({}, id="two sets"),
        pytest.param({"params": {"metric": ["auc", "binary_logloss", "l2"]}}, id="three metrics"),
        pytest.param({"feval": [_same, _other]}, id="metrics of one's own"),
        pytest.param(
            {"params": {"objective": _objective, "metric": "auc"}},
            id="an objective of one's own",
            marks=pytest.mark.slow,
        ),
        pytest.param({"params": {"boosting": "dart"}}, id="dart", marks=pytest.mark.slow),
        pytest.param(
            {"params": {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}},
            id="rf",
            marks=pytest.mark.slow,
        ),
        pytest.param({"keep_training_booster": True}, id="a booster to go on with"),
    ],
)
def test_training_is_logged_as_lightgbm_recorded_it(
    cloud: LocalCloud, name: str, form: dict[str, Any]
) -> None:
    record = _train(IAPLightGBMCallback(experiment_name=name), **form)
    run = the_run(name)
    assert curves(run) == expected(record)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["stopped_iteration"] == 12
    for data, metrics in record.items():
        for metric, values in metrics.items():
            is_higher = metric in ("auc", "mine", "other")
            best = max(values) if is_higher else min(values)
            assert points(run, f"best-{data}-{metric}") == [(values.index(best), best)]


def test_training_without_valid_sets_has_its_params_and_its_end(
    cloud: LocalCloud, name: str
) -> None:
    callback = IAPLightGBMCallback(experiment_name=name)
    lgb.train(PARAMS, sets()[0], 5, callbacks=[callback])
    run = the_run(name)
    assert curves(run) == {}
    assert run.info.status == "FINISHED"
    assert run.data.metrics["stopped_iteration"] == 5
    assert run.data.params["num_iterations"] == "5"


@pytest.mark.parametrize("is_first_only", [True, False])
@pytest.mark.parametrize("is_ours_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_early_stopping_is_finished_with_its_last_and_best_iteration(
    cloud: LocalCloud, name: str, is_first_only: bool, is_ours_first: bool
) -> None:
    train, valid = sets()
    record: dict[str, Any] = {}
    both: list[Callable[..., Any]] = [
        IAPLightGBMCallback(experiment_name=name),
        lgb.early_stopping(3, first_metric_only=is_first_only, verbose=False),
    ]
    callbacks = [*(both if is_ours_first else both[::-1]), lgb.record_evaluation(record)]
    given = list(callbacks)
    booster = lgb.train(
        {**PARAMS, "metric": ["auc", "binary_logloss"]},
        train,
        200,
        valid_sets=[valid],
        callbacks=callbacks,
    )
    run = the_run(name)
    length = len(record["valid_0"]["auc"])
    assert length < 200
    assert curves(run) == expected(record)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_iteration"] == booster.best_iteration
    assert run.data.metrics["stopped_iteration"] == length
    assert callbacks == given


def test_early_stopping_by_params_is_noticed_too(cloud: LocalCloud, name: str) -> None:
    record = _train(
        IAPLightGBMCallback(experiment_name=name), 200, params={"early_stopping_round": 3}
    )
    run = the_run(name)
    assert curves(run) == expected(record)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_iteration"] == run.data.metrics["stopped_iteration"] - 3


def test_training_that_continues_a_model_continues_its_steps(cloud: LocalCloud, name: str) -> None:
    train, _ = sets()
    first = lgb.train(PARAMS, train, 7)
    record = _train(
        IAPLightGBMCallback(experiment_name=name),
        200,
        lgb.early_stopping(3, verbose=False),
        init_model=first,
    )
    run = the_run(name)
    assert curves(run) == expected(record, first=7)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["stopped_iteration"] == 7 + len(record["valid"]["binary_logloss"])


@pytest.mark.parametrize("order", [-1000, 1000])
def test_training_that_raises_is_failed_with_its_last_iteration(
    cloud: LocalCloud, name: str, order: int
) -> None:
    def stop(env: Any) -> None:
        if env.iteration == 4:
            raise ZeroDivisionError

    stop.order = order  # type: ignore[attr-defined]
    callback = IAPLightGBMCallback(experiment_name=name)
    with pytest.raises(ZeroDivisionError):
        _train(callback, 12, stop)
    callback.flush()
    run = the_run(name)
    assert run.info.status == "FAILED"
    assert [step for step, _ in points(run, "valid-binary_logloss")] == [0, 1, 2, 3, 4]


def test_training_that_raises_at_its_last_iteration_is_failed(cloud: LocalCloud, name: str) -> None:
    def stop(env: Any) -> None:
        if env.iteration == env.end_iteration - 1:
            raise ZeroDivisionError

    def train() -> None:
        with pytest.raises(ZeroDivisionError):
            _train(IAPLightGBMCallback(experiment_name=name), 5, stop)

    train()
    gc.collect()  # the exception is freed with the frame
    wait_until(lambda: the_run(name).info.status == "FAILED", "the run is FAILED")


def test_a_callback_used_twice_creates_two_runs(cloud: LocalCloud, name: str) -> None:
    def stop(env: Any) -> None:
        if env.iteration == 3:
            raise ZeroDivisionError

    callback = IAPLightGBMCallback(experiment_name=name)
    with pytest.raises(ZeroDivisionError) as kept:  # kept, as a notebook keeps the last error
        _train(callback, 12, stop)
    record = _train(callback, 6)
    first, second = runs(name)
    assert kept
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert curves(second) == expected(record)


class _At17(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == 17


def _pruning(trial: optuna.Trial) -> Any:
    return LightGBMPruningCallback(trial, "binary_logloss", valid_name="valid")


@pytest.mark.parametrize("run", ["own", "own, in a with", "the trial's"])
def test_pruned_training_has_all_its_points_and_is_killed(
    cloud: LocalCloud, name: str, run: str
) -> None:
    study = optuna.create_study(study_name=name, pruner=_At17())
    of_study = IAPMLflowCallback(study_run=False)
    seen: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        keep = lambda env: seen.append(env.evaluation_result_list[1][2])  # noqa: E731
        keep.order = -500  # type: ignore[attr-defined]
        if run == "own, in a with":
            with IAPLightGBMCallback(experiment_name=name) as callback:
                _train(callback, 100, _pruning(trial), keep)
        else:
            given = of_study.run(trial) if run == "the trial's" else None
            _train(IAPLightGBMCallback(given, experiment_name=name), 100, _pruning(trial), keep)
        return 0.0

    study.optimize(objective, 1, callbacks=[of_study] if run == "the trial's" else [])
    gc.collect()
    found = the_run(name)
    assert study.trials[0].state.name == "PRUNED"
    assert len(seen) == 18
    assert points(found, "valid-binary_logloss") == list(enumerate(seen))
    assert found.info.status == "KILLED"


def test_cv_has_mean_deviation_and_each_fold(cloud: LocalCloud, name: str) -> None:
    callback = IAPLightGBMCallback(experiment_name=name, fold_curves=True)
    result = lgb.cv(
        {**PARAMS, "metric": ["auc", "binary_logloss"]},
        sets()[0],
        8,
        nfold=3,
        feval=_other,
        eval_train_metric=True,
        callbacks=[callback],
    )
    run = the_run(name)
    found = curves(run)
    folds = {full: found.pop(full) for full in list(found) if "-fold" in full}
    assert found == expected_of_cv(result)
    for full, mean in found.items():
        if not full.endswith("-stdv"):
            each = np.array([[v for _, v in folds[f"{full}-fold{number}"]] for number in range(3)])
            np.testing.assert_allclose(each.mean(axis=0), [v for _, v in mean], rtol=1e-12)
            deviation = [v for _, v in found[f"{full}-stdv"]]
            np.testing.assert_allclose(each.std(axis=0), deviation, rtol=1e-9)
    assert run.info.status == "FINISHED"


def test_cv_that_stops_early_keeps_its_last_iterations_too(cloud: LocalCloud, name: str) -> None:
    seen: list[float] = []
    keep = lambda env: seen.append(env.evaluation_result_list[0][2])  # noqa: E731
    result = lgb.cv(
        PARAMS,
        sets()[0],
        200,
        nfold=3,
        callbacks=[
            keep,
            lgb.early_stopping(3, verbose=False),
            IAPLightGBMCallback(experiment_name=name),
        ],
    )
    run = the_run(name)
    (best,) = {len(values) for values in result.values()}  # type: ignore[arg-type]
    assert points(run, "valid-binary_logloss") == list(enumerate(seen))
    assert len(seen) == best + 3  # LightGBM's own result ends at the best iteration
    assert run.data.metrics["best_iteration"] == best
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *(("LGBMClassifier", "as it is"), ("LGBMRegressor", "clone"), ("LGBMRanker", "pickle")),
        *(
            pytest.param(kind, way, marks=pytest.mark.slow)
            for kind, way in [
                *(("LGBMClassifier", way) for way in ("clone", "deepcopy", "pickle")),
                *(("LGBMRegressor", way) for way in ("as it is", "deepcopy", "pickle")),
                *(("LGBMRanker", way) for way in ("as it is", "clone", "deepcopy")),
            ]
        ),
    ],
)
def test_the_estimators_of_scikit_learn_are_logged_as_they_recorded(
    cloud: LocalCloud, name: str, kind: str, way: str
) -> None:
    x, y = arrays()
    callback = IAPLightGBMCallback(experiment_name=name)
    estimator = getattr(lgb, kind)(n_estimators=6, verbose=-1, n_jobs=1)
    options: dict[str, Any] = {"eval_set": [(x[:80], y[:80])], "eval_names": ["held"]}
    if kind == "LGBMRanker":
        options |= {"group": [20] * 10, "eval_group": [[20] * 4]}
    if way == "clone":
        estimator = clone(estimator)
    elif way == "deepcopy":
        estimator, callback = copy.deepcopy((estimator, callback))
    elif way == "pickle":
        estimator, callback = pickle.loads(pickle.dumps((estimator, callback)))
    estimator.fit(x, y, callbacks=[callback], **options)
    run = the_run(name)
    recorded_values = {
        f"held-{name}": values for name, values in estimator.evals_result_["held"].items()
    }
    originals = {
        tag.removeprefix("mlflow_iap.name."): text
        for tag, text in run.data.tags.items()
        if tag.startswith("mlflow_iap.name.")
    }
    found = {originals.get(full, full): curve for full, curve in curves(run).items()}
    found = {full: curve for full, curve in found.items() if not full.startswith("best-")}
    assert found == {full: list(enumerate(values)) for full, values in recorded_values.items()}
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_cross_val_score_creates_a_run_for_each_fold(
    cloud: LocalCloud, name: str, jobs: int, tmp_path: Path
) -> None:
    x, y = arrays()
    callback = IAPLightGBMCallback(experiment_name=name)
    estimator = lgb.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
    recorder = Recorder(tmp_path)
    fit = {"callbacks": [callback, recorder], "eval_set": [(x[:50], y[:50])]}
    scores = cross_val_score(estimator, x, y, cv=3, n_jobs=jobs, params=fit)
    if jobs > 1:
        _end_workers()
    found = runs(name)
    assert len(scores) == len(found) == 3
    recorded = recorder.curves()
    for run in found:
        recorded.remove(curves(run))
        assert run.info.status == "FINISHED"
    assert not recorded


@pytest.mark.slow
def test_a_grid_search_creates_a_run_for_each_fit(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    x, y = arrays()
    search = GridSearchCV(
        lgb.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1), {"num_leaves": [3, 7]}, cv=2
    )
    recorder = Recorder(tmp_path)
    search.fit(
        x,
        y,
        eval_set=[(x[:50], y[:50])],
        callbacks=[IAPLightGBMCallback(experiment_name=name), recorder],
    )
    found = runs(name)
    leaves = [run.data.params["num_leaves"] for run in found]
    best = str(
        search.best_params_["num_leaves"]
    )  # the model, which is fitted once more, to all data
    assert sorted(leaves) == sorted(["3", "3", "7", "7", best])
    recorded = recorder.curves()
    for run in found:
        recorded.remove(curves(run))
        assert run.info.status == "FINISHED"
    assert not recorded


@pytest.mark.slow
@pytest.mark.parametrize("is_local", [True, False])
def test_a_dask_estimator_creates_one_run_which_gets_its_model(
    cloud: LocalCloud, name: str, tmp_path: Path, is_local: bool
) -> None:
    x, y = arrays()
    callback = IAPLightGBMCallback(experiment_name=name)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        estimator = lgb.DaskLGBMClassifier(client=client, n_estimators=6, verbose=-1)
        data = from_array(x, chunks=(50, 4)), from_array(y, chunks=50)
        recorder = Recorder(tmp_path)
        estimator.fit(
            *data,
            eval_set=[data],
            eval_names=["all"],
            callbacks=[callback, recorder],
        )
        assert estimator.fitted_
        given = (x, y) if is_local else data
        callback.finish(estimator, X=given[0], y=given[1])
        client.run(lambda: lifecycle.exit_process(30.0))
        assert callback.flush()
        local = estimator.to_local()
    run = the_run(name)
    (output,) = models(run)
    loaded = mlflow.lightgbm.load_model(f"models:/{output.model_id}")
    np.testing.assert_array_equal(loaded.predict(x), local.predict(x))
    files = IAPMlflowClient().list_artifacts(run.info.run_id, "lightgbm")
    assert "lightgbm/confusion_matrix.csv" in {file.path for file in files}
    recorded = recorder.curves()
    assert len(recorded) == 2  # each worker has its own data, and so its own values
    assert curves(run) in recorded
    assert len(curves(run)["all-binary_logloss"]) == 6
    assert run.info.status == "FINISHED"
    assert run.data.params["num_iterations"] == "6"


@pytest.mark.slow
def test_the_tuner_of_optuna_creates_a_run_for_each_step(cloud: LocalCloud, name: str) -> None:
    train, valid = sets()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuner = LightGBMTuner(
        {**PARAMS, "metric": "binary_logloss"},
        train,
        5,
        valid_sets=[valid],
        callbacks=[IAPLightGBMCallback(experiment_name=name)],
        time_budget=3,
        show_progress_bar=False,
        optuna_seed=0,
    )
    tuner.run()
    found = runs(name)
    assert len(found) == len(tuner.study.trials)
    for run in found:
        assert len(points(run, "valid_0-binary_logloss")) == 5


@pytest.mark.parametrize("is_shared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_twelve_training_runs_in_threads_have_all_their_points(
    cloud: LocalCloud, name: str, is_shared: bool
) -> None:
    shared = IAPLightGBMCallback(experiment_name=name)
    records: dict[int, dict[str, Any]] = {}

    def train(seed: int) -> None:
        callback = shared if is_shared else IAPLightGBMCallback(experiment_name=name)
        records[seed] = _train(
            callback, 15, params={"seed": seed, "bagging_fraction": 0.5, "bagging_freq": 1}
        )

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = runs(name)
    assert len(found) == 12
    for run in found:
        assert curves(run) == expected(records[int(run.data.params["seed"])])
        assert run.info.status == "FINISHED"


def test_an_existing_run_is_logged_to_and_stays_open(cloud: LocalCloud, name: str) -> None:
    client = IAPMlflowClient()
    experiment = client.create_experiment(name)
    run = client.create_run(experiment, run_name="mine")
    client.log_param(run.info.run_id, "learning_rate", "0.1")
    record = _train(IAPLightGBMCallback(run=run.info.run_id), params={"learning_rate": 0.1})
    found = the_run(name)
    assert curves(found) == expected(record)
    assert (found.info.status, found.info.run_name) == ("RUNNING", "mine")
    assert "num_leaves" not in found.data.params  # a default; none was given


def test_the_active_run_is_logged_to_on_request(cloud: LocalCloud, name: str) -> None:
    mlflow.set_experiment(name)
    with mlflow.start_run():
        record = _train(IAPLightGBMCallback(run=mlflow.active_run()))
    run = the_run(name)
    assert curves(run) == expected(record)
    assert run.info.status == "FINISHED"


def test_an_existing_run_is_logged_to_after_pickling(cloud: LocalCloud, name: str) -> None:
    client = IAPMlflowClient()
    run = client.create_run(client.create_experiment(name))
    callback = pickle.loads(pickle.dumps(IAPLightGBMCallback(run=run.info.run_id)))
    record = _train(callback)
    assert curves(the_run(name)) == expected(record)


def test_the_experiment_is_mlflows_active_one(cloud: LocalCloud, name: str) -> None:
    mlflow.set_experiment(name)
    _train(IAPLightGBMCallback(), 2)
    assert the_run(name).info.status == "FINISHED"


def test_the_model_is_the_same_with_and_without_the_callback(cloud: LocalCloud, name: str) -> None:
    def text(*callbacks: Any) -> str:
        train, valid = sets()
        params = {**PARAMS, "bagging_fraction": 0.5, "bagging_freq": 1, "feature_fraction": 0.5}
        booster = lgb.train(params, train, 20, valid_sets=[valid], callbacks=list(callbacks))
        return str(booster.model_to_string())

    with IAPLightGBMCallback(experiment_name=name, max_points=5) as callback:
        logged = text(callback)
    assert logged == text()


def test_thinned_curves_keep_their_best_and_last_points(cloud: LocalCloud, name: str) -> None:
    record = _train(
        IAPLightGBMCallback(experiment_name=name, max_points=10),
        101,
        params={"metric": ["auc", "binary_logloss"]},
    )
    run = the_run(name)
    for full, curve in expected(record).items():
        kept = points(run, full)
        assert len(kept) <= 10
        assert set(kept) <= set(curve)
        choose = max if full.endswith("auc") else min
        assert choose(value for _, value in kept) == choose(value for _, value in curve)
        assert kept[-1] == curve[-1]


def test_thinned_curves_keep_the_last_point_after_early_stopping(
    cloud: LocalCloud, name: str
) -> None:
    record = _train(
        IAPLightGBMCallback(experiment_name=name, max_points=4),
        200,
        lgb.early_stopping(3, verbose=False),
    )
    curve = expected(record)["valid-binary_logloss"]
    kept = points(the_run(name), "valid-binary_logloss")
    assert kept[-1] == curve[-1]
    assert min(value for _, value in kept) == min(value for _, value in curve)


def test_fewer_than_three_points_are_rejected() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        IAPLightGBMCallback(tracking_uri="http://127.0.0.1:1", max_points=2)


def test_names_that_would_be_the_same_stay_distinct(cloud: LocalCloud, name: str) -> None:
    def feval(predicted: np.ndarray, data: lgb.Dataset) -> list[tuple[str, float, bool]]:
        return [("b-c", 1.0, True), ("c", 2.0, True)]

    train, valid = sets()
    lgb.train(
        {**PARAMS, "metric": "None"},
        train,
        2,
        valid_sets=[train, valid],
        valid_names=["a", "a-b"],
        feval=feval,
        callbacks=[IAPLightGBMCallback(experiment_name=name)],
    )
    run = the_run(name)
    found = curves(run)
    assert sorted(value for curve in found.values() for _, value in curve) == [
        1,
        1,
        1,
        1,
        2,
        2,
        2,
        2,
    ]
    assert len(found) == 4
    assert "a-b, c" in run.data.tags.values()


def test_two_data_sets_with_the_same_name_stay_distinct(cloud: LocalCloud, name: str) -> None:
    _, valid = sets()
    train, other = sets()
    _train_two = lgb.train(
        PARAMS,
        train,
        3,
        valid_sets=[valid.set_reference(train), other],
        valid_names=["x", "x"],
        callbacks=[IAPLightGBMCallback(experiment_name=name)],
    )
    assert _train_two.num_trees() == 3
    assert len(curves(the_run(name))) == 2


def test_a_learning_rate_that_changes_is_a_curve(cloud: LocalCloud, name: str) -> None:
    rates = [0.1, 0.1, 0.05, 0.05, 0.02]
    _train(
        IAPLightGBMCallback(experiment_name=name),
        5,
        lgb.reset_parameter(learning_rate=rates),
        params={"learning_rate": 0.1},
    )
    run = the_run(name)
    assert points(run, "learning_rate") == [(0, 0.1), (2, 0.05), (4, 0.02)]
    assert len(points(run, "seconds_per_iteration")) == 4


def test_a_constant_learning_rate_is_only_a_param(cloud: LocalCloud, name: str) -> None:
    _train(IAPLightGBMCallback(experiment_name=name), 3, params={"eta": 0.2})
    run = the_run(name)
    assert "learning_rate" not in run.data.metrics
    assert (run.data.params["learning_rate"], run.data.params["eta"]) == ("0.2", "0.2")


def _end_workers() -> None:
    """Loky kills its workers, and the next process sends what is in their journals."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    done = command("sync")
    assert done.returncode == 0, done.stderr


def test_nan_is_never_the_best_value(cloud: LocalCloud, name: str) -> None:
    values = iter([math.nan, 2.0, 3.0, math.nan])

    def feval(predicted: np.ndarray, data: lgb.Dataset) -> tuple[str, float, bool]:
        return "odd", next(values), False

    train, valid = sets()
    lgb.train(
        {**PARAMS, "metric": "None"},
        train,
        4,
        valid_sets=[valid],
        feval=feval,
        callbacks=[IAPLightGBMCallback(experiment_name=name)],
    )
    run = the_run(name)
    assert points(run, "valid_0-odd") == [(1, 2.0), (2, 3.0)]
    assert points(run, "best-valid_0-odd") == [(1, 2.0)]
    assert run.data.tags["mlflow_iap.skipped_nan_points"] == "2"
