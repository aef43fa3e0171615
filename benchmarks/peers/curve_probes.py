"""Probes of what is stored of the learning curve, for each way to train."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb

from . import judge
from .data import NAMES, PARAMS, curves_of, error_rate, points, train
from .peer import Curves, Peer
from .rows import Answers, probe

_SECTION = "Curve"


@probe(_SECTION, curve="`lgb.train`: every set, metric and iteration, at its own step")
def lgb_train(peer: Peer, answers: Answers) -> None:
    with peer.run() as session:
        booster, expected = train(session.callbacks)
        session.finish(booster, None, None)
    runs = peer.stored()
    answers.put("curve", judge.curves(expected, runs), [sorted(run.curves) for run in runs])


@probe(_SECTION, custom="a custom metric (`feval`)")
def custom_metric(peer: Peer, answers: Answers) -> None:
    with peer.run() as session:
        _, expected = train(session.callbacks, feval=error_rate("mine"))
    answers.put("custom", judge.curves(expected, peer.stored()))


@probe(_SECTION, at="names with an `@`: `ndcg@1`")
def at_names(peer: Peer, answers: Answers) -> None:
    with peer.run() as session:
        _, expected = train(session.callbacks, feval=error_rate("ndcg@1"))
    answers.put("at", judge.curves(expected, peer.stored()))


@probe(_SECTION, odd="names with other characters: `hold out (2024)`, `my metric's%x`")
def odd_names(peer: Peer, answers: Answers) -> None:
    own = error_rate("my metric's%x")
    with peer.run() as session:
        _, expected = train(session.callbacks, feval=own, names=("train", "hold out (2024)"))
    runs = peer.stored()
    answers.put("odd", judge.curves(expected, runs), [sorted(run.curves) for run in runs])


@probe(_SECTION, apart="`a@1` and `a_at_1` stay two curves")
def names_apart(peer: Peer, answers: Answers) -> None:
    own = [error_rate("a@1"), error_rate("a_at_1", 0.7)]
    with peer.run() as session:
        _, expected = train(session.callbacks, feval=own)
    runs = peer.stored()
    answers.put("apart", judge.curves(expected, runs), [sorted(run.curves) for run in runs])


@probe(
    _SECTION,
    mean="`lgb.cv`: mean of the folds",
    deviation="`lgb.cv`: standard deviation",
    folds="`lgb.cv`: each fold's curve",
)
def lgb_cv(peer: Peer, answers: Answers) -> None:
    folds: dict[str, list[tuple[int, float]]] = {}

    def record(env: Any) -> None:
        for number, booster in enumerate(env.model.boosters):
            for data, metric, value, _ in booster.eval_valid():
                name = f"{number} {data} {metric}"
                folds.setdefault(name, []).append((env.iteration, value))

    x, y = points()
    with peer.run(fold_curves=True) as session:
        results: dict[str, Any] = lgb.cv(
            dict(PARAMS),
            lgb.Dataset(x, y, feature_name=NAMES),
            12,
            nfold=3,
            callbacks=[record, *session.callbacks],
        )
    runs = peer.stored()

    def expected(end: str) -> Curves:
        return {n: list(enumerate(v)) for n, v in results.items() if n.endswith(end)}

    answers.put("mean", judge.curves(expected("-mean"), runs), [sorted(r.curves) for r in runs])
    answers.put("deviation", judge.curves(expected("-stdv"), runs))
    answers.put("folds", judge.curves(folds, runs))


@probe(
    _SECTION,
    fit="`LGBMClassifier.fit`",
    end="... and its feature importance, at the end",
)
def classifier(peer: Peer, answers: Answers) -> None:
    x, y = points()
    with peer.run() as session:
        fitted = _classifier().fit(x, y, eval_set=[points(5)], callbacks=session.callbacks)
        try:
            session.finish(fitted, *points(5))
        except Exception as error:  # noqa: BLE001 - any exception is a result
            answers.put("end", f"fails: {type(error).__name__}", error)
    runs = peer.stored()
    answers.put("fit", judge.curves(curves_of(fitted.evals_result_), runs))
    if "end" not in answers.cells:
        split = [int(each) for each in fitted.feature_importances_]
        found = [
            judge.pictures(run, "importance") or judge.has_table(run, fitted.feature_name_, split)
            for run in runs
        ]
        answers.put("end", judge.yes_if(any(found)), found)


def _classifier(**params: Any) -> Any:
    given = {"learning_rate": 0.07, "num_leaves": 6, "min_child_samples": 5, **params}
    return lgb.LGBMClassifier(n_estimators=8, n_jobs=1, random_state=3, verbosity=-1, **given)


def _fold_curves(estimators: list[Any], folds: Any) -> list[Curves]:
    x, y = points()
    found = []
    for estimator in estimators:
        for chosen, _ in folds.split(x, y):
            fitted = estimator.fit(x[chosen], y[chosen], eval_set=[points(5)])
            found.append(curves_of(fitted.evals_result_))
    return found


def _cross_validate(peer: Peer, n_jobs: int) -> str:
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(3)
    expected = _fold_curves([_classifier()], folds)
    x, y = points()
    with peer.run() as session:
        cross_val_score(
            _classifier(),
            x,
            y,
            cv=folds,
            n_jobs=n_jobs,
            error_score="raise",
            params={"eval_set": [points(5)], "callbacks": session.callbacks},
        )
    if n_jobs > 1:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)
    return judge.one_run_each(expected, peer.stored())


@probe(_SECTION, one="`cross_val_score`, `n_jobs=1`: one run per fit")
def cross_validation(peer: Peer, answers: Answers) -> None:
    answers.put("one", _cross_validate(peer, 1))


@probe(_SECTION, two="`cross_val_score`, `n_jobs=2`: one run per fit")
def cross_validation_in_processes(peer: Peer, answers: Answers) -> None:
    answers.put("two", _cross_validate(peer, 2))


@probe(_SECTION, grid="`GridSearchCV`: one run per fit")
def grid_search(peer: Peer, answers: Answers) -> None:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(2)
    leaves = [4, 8]
    expected = _fold_curves([_classifier(num_leaves=each) for each in leaves], folds)
    search = GridSearchCV(
        _classifier(), {"num_leaves": leaves}, cv=folds, refit=False, error_score="raise"
    )
    with peer.run() as session:
        search.fit(*points(), eval_set=[points(5)], callbacks=session.callbacks)
    answers.put("grid", judge.one_run_each(expected, peer.stored()))


@probe(_SECTION, timeout=150.0, dask="Dask estimator, two workers: one run")
def dask_estimator(peer: Peer, answers: Answers) -> None:
    from dask import array
    from distributed import Client, LocalCluster

    x, y = points(rows=400)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        data = array.from_array(x, chunks=(200, x.shape[1])).persist()
        labels = array.from_array(y, chunks=200).persist()
        with peer.run() as session:
            fitted = lgb.DaskLGBMClassifier(
                client=client, n_estimators=8, n_jobs=1, random_state=3, verbosity=-1
            ).fit(
                data,
                labels,
                eval_set=[(data, labels)],
                callbacks=session.callbacks or None,
            )
        expected = curves_of(fitted.evals_result_)
    runs = peer.stored()
    cell = judge.curves(expected, runs)
    if cell == judge.YES and len(runs) > 1:
        cell = judge.part(f"{len(runs)} runs")
    answers.put("dask", cell, [len(run.curves) for run in runs])
