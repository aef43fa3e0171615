"""Forms of LightGBM training: each returns, raises and records the same with the callback."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from lightgbm_helpers import OWN, PARAMS, arrays
from mlflow_iap_callbacks import IAPLightGBMCallback

_X, _Y = arrays(120)
_TARGET = _X[:, 0] * 3 + np.sin(_X[:, 1])
_CLASSES = np.digitize(_X[:, 0], [-0.5, 0.5])
_QUERIES = [12] * 10
_ROUNDS = 4
_LONGEST = 200  # characters of a name that are compared; MLflow cuts it later
_QUICK: dict[str, Any] = {
    "num_leaves": 4,
    "min_child_samples": 5,
    "num_threads": 1,
    "verbosity": -1,
    "seed": 1,
}

_Form = Callable[["Calls"], Any]
_FORMS: dict[str, _Form] = {}


class Calls:
    """The callbacks of each training run of a form, with what LightGBM recorded of it.

    Args:
        given: the callbacks under test.
        is_first: whether they come before the form's own ones.
    """

    def __init__(self, *given: Any, is_first: bool = True) -> None:
        self._given, self._is_first = given, is_first
        self.records: list[dict[str, Any]] = []

    def __call__(self, *own: Any) -> list[Any]:
        """The callbacks of one more training run, with the form's own ones."""
        record: dict[str, Any] = {}
        self.records.append(record)
        recorder: Any = lgb.record_evaluation(record)
        recorder.order = -1000  # before those that fail, which hide the iteration from later ones
        own = (*own, recorder)
        return [*self._given, *own] if self._is_first else [*own, *self._given]


def _form(function: _Form) -> _Form:
    _FORMS[function.__name__.removeprefix("_").replace("_", " ")] = function
    return function


def _vary(name: str, function: Callable[..., Any], **options: Any) -> None:
    _FORMS[name] = partial(function, **options)


def _set(y: Any = _Y, X: Any = _X, **options: Any) -> lgb.Dataset:
    return lgb.Dataset(X, y, free_raw_data=False, **options)


def _train(
    calls: Calls,
    *own: Any,
    y: Any = _Y,
    X: Any = _X,
    params: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    names: Any = None,
    rounds: int = _ROUNDS,
    **options: Any,
) -> Any:
    train = _set(y, X, **(data or {}))
    valid = [train, lgb.Dataset(X, y, reference=train, **(data or {}))]
    given = {"valid_sets": valid, "valid_names": names or ["train", "valid"], **options}
    used = {**_QUICK, "objective": "binary", **(params or {})}
    return _seen(lgb.train(used, train, rounds, callbacks=calls(*own), **given), X)


def _seen(model: Any, X: Any = _X) -> Any:
    """What a user sees of a model."""
    if not isinstance(model, lgb.Booster):
        names = ("best_iteration_", "best_score_", "evals_result_", "n_iter_", "classes_")
        state = {name: getattr(model, name, None) for name in names}
        return model.predict(X), state, model.booster_.model_to_string()
    return model.predict(X), model.best_iteration, model.best_score, model.model_to_string()


# lgb.train

_vary("train", _train)
_vary("names with blanks, slashes and umlauts", _train, names=["my train/set", "größe ü"])
_vary("a name of 300 characters", _train, names=["t" * 300, "v"])
_vary("one valid set that is no list", _train, valid_sets=_set(), valid_names="only")
_vary("no valid sets", _train, valid_sets=None, valid_names=None)
_vary("an empty list of valid sets", _train, valid_sets=[], valid_names=[])
_vary("a valid set without a name", _train, valid_names=None)
_vary("several metrics", _train, params={"metric": ["auc", "binary_logloss", "average_precision"]})
_vary("metrics in one text", _train, params={"metric": "auc,binary_error"})
_vary("metrics in a set", _train, params={"metric": {"auc", "binary_error"}})
_vary("no metric", _train, params={"metric": "None"})
_vary("dart", _train, params={"boosting": "dart", "drop_rate": 0.9, "skip_drop": 0.0})
_vary(
    "random forest",
    _train,
    params={"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
)
_vary("goss", _train, params={"data_sample_strategy": "goss"})
_vary("linear trees", _train, y=_TARGET, params={"objective": "regression", "linear_tree": True})
_vary("quantile", _train, y=_TARGET, params={"objective": "quantile", "alpha": 0.9})
_vary(
    "monotone constraints",
    _train,
    y=_TARGET,
    params={"objective": "regression", "monotone_constraints": [1, 0, 0, -1]},
)
_vary("interactions", _train, params={"interaction_constraints": [[0, 1], [2, 3]]})
_vary("multiclass", _train, y=_CLASSES, params={"objective": "multiclass", "num_class": 3})
_vary("weights", _train, data={"weight": np.linspace(0.1, 1.0, len(_Y))})
_vary("initial scores", _train, data={"init_score": np.full(len(_Y), 0.2)})
_vary(
    "ranking",
    _train,
    y=_CLASSES,
    data={"group": _QUERIES},
    params={"objective": "lambdarank", "metric": "ndcg,map", "eval_at": [1, 3]},
)
_vary("a constant target", _train, y=np.ones(len(_Y)), params={"objective": "regression"})
_vary("one row", _train, y=_TARGET[:1], X=_X[:1], params={"objective": "regression"})
_vary("one feature", _train, X=_X[:, :1])
_vary("sparse data", _train, X=csr_matrix(_X))
_vary("no split", _train, params={"min_child_samples": 1000})
_vary("one round", _train, rounds=1)
_vary("no round", _train, rounds=0)
_vary("rounds among the params", _train, params={"n_estimators": 3})
_vary("a booster that is kept", _train, keep_training_booster=True)
_vary("a param that does not exist", _train, params={"no_such_param": object})
_vary("an objective that does not exist", _train, params={"objective": "no_such"})
_vary("labels that do not fit", _train, y=_TARGET)
_vary("more classes than labels", _train, params={"objective": "multiclass", "num_class": 0})
_vary(
    "early stopping by params",
    _train,
    rounds=30,
    params={"early_stopping_round": 2, "metric": ["auc", "binary_error"]},
)


def _stopped(calls: Calls, **options: Any) -> Any:
    stopping = lgb.early_stopping(2, verbose=False, **options)
    params = {"metric": ["binary_error", "auc"], "learning_rate": 0.9}
    return _train(calls, stopping, rounds=30, params=params)


_vary("early stopping", _stopped)
_vary("early stopping by the first metric", _stopped, first_metric_only=True)
_vary("early stopping with min_delta", _stopped, min_delta=0.05)
_vary("early stopping with several min_delta", _stopped, min_delta=[0.1, 0.0, 0.1, 0.0])
_vary("early stopping with too many min_delta", _stopped, min_delta=[0.1] * 7)


def _mine(predicted: np.ndarray, data: lgb.Dataset) -> list[tuple[str, float, bool]]:
    return [("mean", float(np.mean(predicted)), True), ("ndcg@5", float(np.std(predicted)), False)]


def _yours(predicted: np.ndarray, data: lgb.Dataset) -> tuple[str, float, bool]:
    return "yours", float(np.max(predicted)), True


def _odd(value: Any, predicted: np.ndarray, data: lgb.Dataset) -> tuple[str, Any, bool]:
    return "odd", value, True


def _logistic(predicted: np.ndarray, data: lgb.Dataset) -> tuple[np.ndarray, np.ndarray]:
    probability = 1.0 / (1.0 + np.exp(-predicted))
    return probability - data.get_label(), probability * (1.0 - probability)


def _failing(*_: Any) -> Any:
    raise ZeroDivisionError("a function of the user's")


_vary("a custom metric", _train, feval=_yours)
_vary("custom metrics", _train, feval=[_mine, _yours])
_vary("only custom metrics", _train, feval=_mine, params={"metric": "None"})
_vary("a custom metric that fails", _train, feval=_failing)
_vary("a custom metric without a value", _train, feval=partial(_odd, None))
_vary("a custom metric that is not a number", _train, feval=partial(_odd, float("nan")))
_vary("a custom metric with a complex value", _train, feval=partial(_odd, 1j))
_vary("a custom metric with a text", _train, feval=partial(_odd, "high"))
_vary("a custom metric with a numpy value", _train, feval=partial(_odd, np.float32(0.5)))
_vary("a custom metric with an array", _train, feval=partial(_odd, np.array([0.5])))
_vary("a custom objective", _train, params={"objective": _logistic, "metric": "auc"})
_vary("a custom objective that fails", _train, params={"objective": _failing})


@_form
def _learning_rates_that_change(calls: Calls) -> Any:
    reset = lgb.reset_parameter(
        learning_rate=lambda step: 0.1 / (step + 1), bagging_fraction=[1.0] * 4
    )
    return _train(calls, reset)


@_form
def _learning_rates_of_the_wrong_number(calls: Calls) -> Any:
    return _train(calls, lgb.reset_parameter(learning_rate=[0.1]))


@_form
def _continued_training(calls: Calls) -> Any:
    train, params = _set(), {**_QUICK, "objective": "binary"}
    first = lgb.train(params, train, 3, valid_sets=[train], callbacks=calls())
    options: Any = {"valid_sets": [train], "callbacks": calls(lgb.early_stopping(2, verbose=False))}
    return _seen(first), _seen(lgb.train(params, train, 5, init_model=first, **options))


@_form
def _continued_from_a_text(calls: Calls) -> Any:
    train, params = _set(), {**_QUICK, "objective": "binary"}
    first = lgb.train(params, train, 3, valid_sets=[train], callbacks=calls())
    copied = lgb.Booster(model_str=first.model_to_string())
    return _seen(lgb.train(params, _set(), 2, init_model=copied, callbacks=calls()))


@_form
def _refit(calls: Calls) -> Any:
    train = _set()
    booster = lgb.train(PARAMS, train, _ROUNDS, valid_sets=[train], callbacks=calls())
    return _seen(booster.refit(_X, 1 - _Y, decay_rate=0.5))


@_form
def _a_kept_booster_that_is_trained_on(calls: Calls) -> Any:
    train = _set()
    options: Any = {"valid_sets": [train], "callbacks": calls(), "keep_training_booster": True}
    booster = lgb.train(PARAMS, train, 2, **options)
    booster.update()
    booster.rollback_one_iter()
    booster.update()
    return (
        booster.eval_train(),
        _seen(copy.deepcopy(booster)),
        _seen(pickle.loads(pickle.dumps(booster))),
    )


@_form
def _a_data_set_trained_on_twice(calls: Calls) -> Any:
    train = _set()
    found = []
    for rate in (0.1, 0.5):
        params = {**_QUICK, "objective": "binary", "learning_rate": rate}
        found.append(lgb.train(params, train, 3, valid_sets=[train], callbacks=calls()))
    return [_seen(each) for each in found]


@_form
def _a_subset_of_a_data_set(calls: Calls) -> Any:
    whole = _set()
    part = whole.subset(list(range(60)))
    return _seen(lgb.train(PARAMS, part, 3, valid_sets=[part], callbacks=calls()))


@_form
def _categories(calls: Calls) -> Any:
    frame = pd.DataFrame({"a b": _X[:, 0], "kind": pd.Categorical(list("xyz") * 40)})
    return _train(calls, X=frame), _train(calls, X=frame, data={"categorical_feature": ["kind"]})


@_form
def _params_of_odd_types(calls: Calls) -> Any:
    odd = {"learning_rate": np.float32(0.1), "num_leaves": np.int64(4), "max_bin": "63"}
    flags = {"extra_trees": np.bool_(True), "note": {"a": [1, 2]}, "path": Path("x")}
    return _train(calls, params={**odd, **flags})


@_form
def _two_sets_that_share_a_callback(calls: Calls) -> Any:
    given = calls()
    train = _set()
    return [_seen(lgb.train(PARAMS, train, 2, valid_sets=[train], callbacks=given))]


@_form
def _callbacks_in_a_set(calls: Calls) -> Any:
    given: Any = set(calls())
    train = _set()
    return _seen(lgb.train(PARAMS, train, 3, valid_sets=[train], callbacks=given))


@_form
def _callbacks_in_a_tuple(calls: Calls) -> Any:
    train = _set()
    given: Any = tuple(calls())
    return _seen(lgb.train(PARAMS, train, 3, valid_sets=[train], callbacks=given))


@_form
def _a_callback_that_fails(calls: Calls) -> Any:
    return _train(calls, lambda env: None if env.iteration < 2 else _failing())


@_form
def _a_callback_that_fails_at_the_first_iteration(calls: Calls) -> Any:
    return _train(calls, _failing)


@_form
def _a_callback_interrupted_by_the_user(calls: Calls) -> Any:
    def interrupt(env: Any) -> None:
        raise KeyboardInterrupt

    return _train(calls, interrupt)


@_form
def _a_callback_that_changes_the_model(calls: Calls) -> Any:
    def shuffle(env: Any) -> None:
        if env.iteration == 2:
            env.model.shuffle_models()

    return _train(calls, shuffle)


@_form
def _training_inside_of_training(calls: Calls) -> Any:
    inner = []

    def train_another(env: Any) -> None:
        if env.iteration == 1:
            inner.append(_train(calls, rounds=2))

    outer = _train(calls, train_another)
    return outer, inner


@_form
def _training_in_threads(calls: Calls) -> Any:
    found: dict[int, Any] = {}

    def train(seed: int) -> None:
        found[seed] = _train(calls, params={"extra_trees": True, "extra_seed": seed})

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


# lgb.cv


def _cv(calls: Calls, *own: Any, params: Any = None, data: Any = None, **options: Any) -> Any:
    given = {"nfold": 3, "seed": 1, "num_boost_round": _ROUNDS, **options}
    used = {**_QUICK, "objective": "binary", **(params or {})}
    y = _CLASSES if data else _Y
    result: dict[str, Any] = {
        **lgb.cv(used, _set(y, **(data or {})), callbacks=calls(*own), **given)
    }
    folds = result.pop("cvbooster", None)
    return result, folds and (folds.best_iteration, folds.predict(_X))


_vary("cross-validation", _cv)
_vary("cross-validation with the training metric", _cv, eval_train_metric=True)
_vary("cross-validation with its boosters", _cv, return_cvbooster=True)
_vary("cross-validation without stratification", _cv, stratified=False, shuffle=False)
_vary("cross-validation with given folds", _cv, folds=[(range(60), range(60, 120))] * 2)
_vary("cross-validation with a custom metric", _cv, feval=[_mine, _yours], metrics="auc")
_vary("cross-validation with a failing metric", _cv, feval=_failing)
_vary("cross-validation with a custom objective", _cv, params={"objective": _logistic})
_vary(
    "cross-validation of ranking",
    _cv,
    data={"group": _QUERIES},
    params={"objective": "lambdarank", "eval_at": [1, 3]},
    folds=GroupKFold(3),
)


@_form
def _cross_validation_that_stops_early(calls: Calls) -> Any:
    stopping = lgb.early_stopping(2, verbose=False, first_metric_only=True)
    params = {"metric": ["binary_error", "auc"], "learning_rate": 0.9}
    return _cv(calls, stopping, params=params, num_boost_round=30, return_cvbooster=True)


@_form
def _cross_validation_that_fails(calls: Calls) -> Any:
    return _cv(calls, lambda env: None if env.iteration < 2 else _failing())


# scikit-learn's estimators


def _fit(
    calls: Calls,
    kind: Any = lgb.LGBMClassifier,
    *own: Any,
    y: Any = _Y,
    options: Any = None,
    **given: Any,
) -> Any:
    estimator = kind(n_estimators=_ROUNDS, **{**_QUICK, **(options or {})})
    estimator.fit(_X, y, **{"eval_set": [(_X, y)], "callbacks": calls(*own), **given})
    return _seen(estimator)


def _in_sklearn(true: np.ndarray, predicted: np.ndarray) -> tuple[str, float, bool]:
    return "mine", float(np.mean(predicted)), False


def _weighted(true: Any, predicted: Any, weight: Any, group: Any) -> Any:
    return [("a b", 0.5, True), ("c/d", float(np.std(predicted)), True)]


_vary("classifier", _fit)
_vary("classifier without eval_set", _fit, eval_set=None)
_vary("classifier with named sets", _fit, eval_names=["mine"])
_vary("classifier with metrics", _fit, eval_metric=["auc", _in_sklearn, _weighted])
_vary("classifier with a failing metric", _fit, eval_metric=_failing)
_vary("classifier with an unknown metric", _fit, eval_metric="no such metric")
_vary("classifier of texts", _fit, y=np.array(["no", "yes", "may be"])[_CLASSES])
_vary("classifier with class weights", _fit, options={"class_weight": "balanced"})
_vary("classifier with eval weights", _fit, eval_sample_weight=[np.linspace(0.1, 1, 120)])
_vary("classifier with a set of data", _fit, eval_X=_X, eval_y=_Y, eval_set=None)
_vary("regressor", _fit, kind=lgb.LGBMRegressor, y=_TARGET)
_vary(
    "regressor by quantile",
    _fit,
    kind=lgb.LGBMRegressor,
    y=_TARGET,
    options={"objective": "quantile"},
)
_vary(
    "regressor of a custom objective",
    _fit,
    kind=lgb.LGBMRegressor,
    y=_TARGET,
    options={"objective": lambda true, predicted: (predicted - true, np.ones(len(true)))},
)
_vary(
    "ranker",
    _fit,
    kind=lgb.LGBMRanker,
    y=_CLASSES,
    group=_QUERIES,
    eval_group=[_QUERIES],
    eval_at=[1, 2],
)
_vary("ranker without groups", _fit, kind=lgb.LGBMRanker, y=_CLASSES)
_vary("model without an objective", _fit, kind=lgb.LGBMModel)
_vary(
    "random forest by an estimator",
    _fit,
    options={"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1},
)


@_form
def _an_estimator_that_stops_early(calls: Calls) -> Any:
    stopping = lgb.early_stopping(1, first_metric_only=True, verbose=False)
    return _fit(
        calls, lgb.LGBMClassifier, stopping, eval_metric=["auc"], options={"learning_rate": 0.9}
    )


@_form
def _an_estimator_fitted_again(calls: Calls) -> Any:
    estimator = lgb.LGBMClassifier(n_estimators=3, **_QUICK)
    found = []
    for each in (estimator, estimator.set_params(n_estimators=2), clone(estimator)):
        each.fit(_X, _Y, eval_set=[(_X, _Y)], callbacks=calls())
        found.append(_seen(each))
    again = pickle.loads(pickle.dumps(estimator))
    again.fit(_X, _Y, eval_set=[(_X, _Y)], callbacks=calls(), init_model=estimator)
    return found, _seen(again), again.get_params()


@_form
def _an_estimator_whose_fit_fails(calls: Calls) -> Any:
    return _fit(calls, lgb.LGBMRegressor, _failing)


@_form
def _an_estimator_in_a_pipeline(calls: Calls) -> Any:
    pipeline = make_pipeline(StandardScaler(), lgb.LGBMClassifier(n_estimators=3, **_QUICK))
    pipeline.fit(_X, _Y, lgbmclassifier__callbacks=calls())
    return pipeline.predict_proba(_X)


@_form
def _estimators_of_several_targets(calls: Calls) -> Any:
    several = MultiOutputRegressor(lgb.LGBMRegressor(n_estimators=2, **_QUICK))
    given = calls()
    calls.records.append({})  # the second of two runs
    return several.fit(_X, np.stack([_TARGET, -_TARGET], axis=1), callbacks=given).predict(_X)


@_form
def _a_grid_search(calls: Calls) -> Any:
    search = GridSearchCV(lgb.LGBMClassifier(n_estimators=2, **_QUICK), {"max_depth": [1, 2]}, cv=2)
    given = calls()
    calls.records += [{}] * 4  # two params and two folds, and the best one once more
    search.fit(_X, _Y, callbacks=given)
    return search.best_params_, search.predict_proba(_X)


@_form
def _predictions_of_a_cross_validation(calls: Calls) -> Any:
    params = {"callbacks": calls()}
    calls.records += [{}]
    estimator = lgb.LGBMClassifier(n_estimators=2, **_QUICK)
    return cross_val_predict(estimator, _X, _Y, cv=2, params=params)


# Forms that take the same way through the callback as another one.
_SLOW = (
    *("metrics in one text", "metrics in a set", "random forest", "goss", "linear trees"),
    *("quantile", "monotone constraints", "interactions", "weights", "initial scores"),
    *("one row", "one feature", "sparse data", "no split", "an objective that does not exist"),
    *("more classes than labels", "early stopping by the first metric"),
    *("early stopping with min_delta", "early stopping with several min_delta"),
    *("early stopping with too many min_delta", "custom metrics", "only custom metrics"),
    *("a custom metric with a complex value", "a custom metric with a text"),
    *("a custom metric with a numpy value", "a custom objective that fails"),
    *("learning rates of the wrong number", "continued from a text", "a subset of a data set"),
    *("params of odd types", "callbacks in a tuple", "a callback that changes the model"),
    *("cross-validation with the training metric", "cross-validation without stratification"),
    *("cross-validation with given folds", "cross-validation with a custom metric"),
    *("cross-validation with a custom objective", "cross validation that fails"),
    *("classifier without eval_set", "classifier with named sets", "classifier of texts"),
    *("classifier with an unknown metric", "classifier with class weights"),
    *("classifier with eval weights", "classifier with a set of data"),
    *("regressor by quantile", "regressor of a custom objective", "ranker without groups"),
    *("model without an objective", "random forest by an estimator", "a grid search"),
    *("an estimator whose fit fails", "predictions of a cross validation"),
)


def _params() -> list[Any]:
    assert {*_SLOW} <= _FORMS.keys()
    marks = dict.fromkeys(_SLOW, pytest.mark.slow)
    return [pytest.param(form, marks=marks.get(name, ())) for name, form in _FORMS.items()]


def _outcome(form: _Form, calls: Calls) -> tuple[Any, Any, list[tuple[type[Warning], str]]]:
    """What a form returned, what it raised, and the warnings it caused."""
    error = result = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = form(calls)
        except BaseException as raised:  # noqa: BLE001 - it is compared
            error = (type(raised), str(raised))
    gc.collect(1)
    # What other tests left may be garbage by now, and warn too.
    said = [each for each in caught if each.category is not ResourceWarning]
    return result, error, [(each.category, str(each.message)) for each in said]


def _curves(run: FakeRun) -> dict[str, list[float]]:
    """Values of the evaluations, by the name of their curve; each iteration has one."""
    names = {name for name, *_ in run.points if not name.startswith(OWN)}
    for name in names:
        steps = [step for step, _ in run.curve(name)]
        assert steps == list(range(steps[0], steps[0] + len(steps)))
    return {name[:_LONGEST]: [value for _, value in run.curve(name)] for name in names}


def _recorded(record: dict[str, Any]) -> dict[str, list[Any]]:
    """Values by the name of their curve, without those that MLflow does not store."""
    found = {}
    for data, metrics in record.items():
        for metric, values in metrics.items():
            name = f"{data}-{metric.removesuffix('-mean')}".replace("@", "_at_")[:_LONGEST]
            kinds = (float, np.generic, np.ndarray)
            numbers = [np.asarray(value).item() for value in values if isinstance(value, kinds)]
            kept = [number for number in numbers if number == number]
            if kept:
                found[name] = kept
    return found


def _sorted(curves: Iterable[dict[str, list[float]]]) -> list[Any]:
    return sorted((sorted(each.items()) for each in curves), key=repr)


@pytest.mark.parametrize(
    "is_first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["first", "last"]
)
@pytest.mark.parametrize("form", _params(), ids=_FORMS)
def test_a_form_is_the_same_with_the_callback_and_its_runs_have_what_lightgbm_recorded(
    delivery: InlineDelivery, form: _Form, is_first: bool
) -> None:
    bare = _outcome(form, Calls())
    callback = IAPLightGBMCallback(client=delivery.client, log_datasets=False)
    calls = Calls(callback, is_first=is_first)
    np.testing.assert_equal(_outcome(form, calls), bare)
    callback.flush()
    runs = delivery.runs()
    curves = [_curves(run) for run in runs]
    recorded = [_recorded(record) for record in calls.records]
    if len(runs) > len(recorded):
        # Estimators of scikit-learn train several times with the same callbacks.
        assert recorded[-1] in curves
    else:
        assert _sorted(filter(None, curves)) == _sorted(filter(None, recorded))
    error = bare[1]
    assert {run.status for run in runs} <= (
        {"FINISHED"} if error is None else {"FINISHED", "FAILED"}
    )
    assert len(runs) == len(recorded) or error is not None
