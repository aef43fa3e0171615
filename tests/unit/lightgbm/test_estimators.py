"""Which models ``finish`` accepts, and how it explains why it rejects others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingClassifier, StackingClassifier
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lightgbm_helpers import PARAMS, arrays, sets
from mlflow_iap_callbacks.lightgbm.endings import engine_of
from mlflow_iap_callbacks.lightgbm.estimators import fitted, fitting


def _classifier(**options: Any) -> Any:
    return lgb.LGBMClassifier(n_estimators=2, verbose=-1, n_jobs=1, **options)


def _fit(estimator: Any) -> Any:
    return estimator.fit(*arrays())


def _search(**options: Any) -> Any:
    return GridSearchCV(_classifier(), {"num_leaves": [7, 15]}, cv=2, **options)


def test_boosters_are_accepted_as_they_are() -> None:
    booster = lgb.train(PARAMS, sets()[0], 2)
    folds: Any = lgb.cv(PARAMS, sets()[0], 2, nfold=2, return_cvbooster=True)
    for model in (booster, folds["cvbooster"]):
        assert fitted(model).booster is model
        assert fitted(model).estimator is None


_TAKEN: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "classifier": (_classifier, lambda model: model),
    "pipeline": (
        lambda: make_pipeline(StandardScaler(), _classifier()),
        lambda model: model[-1],
    ),
    "search": (_search, lambda model: model.best_estimator_),
    "target": (
        lambda: TransformedTargetRegressor(lgb.LGBMRegressor(n_estimators=2, verbose=-1)),
        lambda model: model.regressor_,
    ),
}


@pytest.mark.parametrize("kind", _TAKEN)
def test_an_estimator_with_one_model_is_accepted(kind: str) -> None:
    make, inner = _TAKEN[kind]
    model = _fit(make())
    found = fitted(model)
    assert found.booster is inner(model).booster_
    assert found.estimator is (model.best_estimator_ if kind == "search" else model)


def test_the_best_pipeline_stands_for_a_search_over_pipelines() -> None:
    pipeline = Pipeline([("scale", StandardScaler()), ("model", _classifier())])
    model = _fit(GridSearchCV(pipeline, {"model__num_leaves": [7, 15]}, cv=2))
    assert fitted(model).estimator is model.best_estimator_
    assert fitted(model).booster is model.best_estimator_["model"].booster_


_REJECTED: dict[str, tuple[Callable[[], Any], str]] = {
    "class": (lambda: lgb.LGBMClassifier, "the class LGBMClassifier"),
    "unfitted": (_classifier, "LGBMClassifier that is not fitted"),
    "unfitted pipeline": (lambda: make_pipeline(_classifier()), "once it is fitted"),
    "search without refit": (lambda: _fit(_search(refit=False)), "GridSearchCV without one"),
    "another estimator": (lambda: _fit(LogisticRegression()), "LogisticRegression without one"),
    "calibrated": (lambda: _fit(CalibratedClassifierCV(_classifier(), cv=2)), "with several"),
    "stacked": (
        lambda: _fit(StackingClassifier([("a", _classifier()), ("b", _classifier())], cv=2)),
        "with several",
    ),
    "bagging": (lambda: _fit(BaggingClassifier(_classifier(), 2)), "with several"),
    "selection": (lambda: _fit(SelectFromModel(_classifier())), "SelectFromModel without one"),
    "result of cv": (lambda: {"valid auc-mean": [0.5]}, "return_cvbooster=True"),
    "no folds": (lgb.CVBooster, "CVBooster without boosters"),
    "path": (lambda: "model.txt", "a str"),
    "array": (lambda: np.zeros(3), "a ndarray"),
    "nothing": (lambda: None, "a NoneType"),
}


@pytest.mark.parametrize("kind", _REJECTED)
def test_anything_without_exactly_one_trained_model_is_rejected_with_a_reason(kind: str) -> None:
    make, words = _REJECTED[kind]
    with pytest.raises(TypeError, match=words):
        fitted(make())


class _Finds:
    """A callback that looks for the estimator that is trained."""

    def __init__(self) -> None:
        self.found: Any = None

    def __call__(self, env: Any) -> None:
        import sys

        self.found = fitting(engine_of(sys._getframe()))


def test_the_estimator_that_lightgbm_trains_for_is_found_with_its_data() -> None:
    finds, (x, y) = _Finds(), arrays()
    estimator = _classifier().fit(x, y, callbacks=[finds])
    assert finds.found[0] is estimator
    assert finds.found[1] is x
    lgb.train(PARAMS, sets()[0], 1, callbacks=[finds])
    assert finds.found == (None, None)


def test_a_model_trained_in_a_callback_does_not_get_the_estimator_around_it() -> None:
    finds, (x, y) = _Finds(), arrays()
    estimator = _classifier()
    estimator.fit(
        x, y, callbacks=[lambda _: bool(lgb.train(PARAMS, sets()[0], 1, callbacks=[finds]))]
    )
    assert finds.found == (None, None)
