"""Probes of what is stored, for each way in which training ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter
from typing import Any

import lightgbm as lgb
import numpy as np

from . import judge
from .data import PARAMS, error_rate, train
from .peer import Curves, Peer, StoredRun
from .rows import Answers, probe

_FAST = {**PARAMS, "eta": 0.6}  # so that it soon stops early


def _status(runs: list[StoredRun], *wanted: str) -> str:
    found = sorted({run.status or "none noted" for run in runs})
    if not found:
        return "no: no run"
    return judge.YES if set(found) <= set(wanted) else f"no: {', '.join(found)}"


@probe(
    "End of training",
    last="early stopping: the curve has its last iteration",
    apart="... and no further points after it",
    iteration="... best iteration",
    score="... best score, apart from the curve",
    finished="... the run is marked finished",
)
def early_stopping(peer: Peer, answers: Answers) -> None:
    with peer.run() as session:
        stop = lgb.early_stopping(3, verbose=False)
        booster, expected = train([stop, *session.callbacks], rounds=60, params=_FAST)
        session.finish(booster, None, None)
    runs = peer.stored()
    cell = judge.curves(expected, runs)
    more = "further points" in cell
    answers.put(
        "last", judge.YES if more else cell, f"{len(next(iter(expected.values())))} iterations"
    )
    answers.put("apart", judge.NO if more else cell)
    best = booster.best_iteration
    found = {n: v for run in runs for n, v in judge.values_named(run, "best.?iter").items()}
    is_there = any(judge.is_number(v, best) or judge.is_number(v, best - 1) for v in found.values())
    answers.put("iteration", judge.yes_if(is_there), f"{best}, found {found}")
    scores = [value for metrics in booster.best_score.values() for value in metrics.values()]
    named = {n: v for run in runs for n, v in judge.values_named(run, r"best|\.(max|min)$").items()}
    kept = [score for score in scores if any(judge.is_number(v, score) for v in named.values())]
    answers.put("score", _share(len(kept), len(scores)), f"{scores}, found {named}")
    answers.put("finished", _status(runs, "finished"))


def _share(kept: int, wanted: int) -> str:
    if kept == wanted:
        return judge.YES
    return judge.part(f"{kept} of {wanted}") if kept else judge.NO


@probe("End of training", pruned="pruned by `LightGBMPruningCallback`: all 18 reported points")
def pruned_trial(peer: Peer, answers: Answers) -> None:
    import optuna
    from optuna_integration import LightGBMPruningCallback

    class AtStep17(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.last_step is not None and trial.last_step >= 17

    params = {**PARAMS, "metric": ["auc"]}
    _, whole = train([], rounds=40, params=params)

    def objective(trial: Any) -> float:
        with peer.run() as session:
            prune = LightGBMPruningCallback(trial, "auc", valid_name="valid")
            train([prune, *session.callbacks], rounds=40, params=params)
        return 0.0

    study = optuna.create_study(direction="maximize", pruner=AtStep17())
    study.optimize(objective, n_trials=1)
    reported = study.trials[0].intermediate_values
    expected = {"valid auc": whole["valid auc"][:18]}
    assert dict(expected["valid auc"]) == reported
    runs = peer.stored()
    kept = [len(set(c) & set(expected["valid auc"])) for run in runs for c in run.curves.values()]
    most = max(kept, default=0)
    answers.put("pruned", judge.YES if most == 18 else _share(most, 18))


@probe(
    "End of training",
    kept="training raises an exception: the curve is kept",
    failed="... the run is marked failed",
)
def raising(peer: Peer, answers: Answers) -> None:
    _, whole = train([], feval=error_rate("mine"))
    calls = 0

    def metric(predicted: Any, data: Any) -> tuple[str, float, bool]:
        nonlocal calls
        calls += 1
        if calls > 16:  # two data sets, so this is the ninth iteration
            raise RuntimeError("the metric of the ninth iteration")
        return error_rate("mine")(predicted, data)

    expected = {name: curve[:8] for name, curve in whole.items()}
    with suppress(RuntimeError), peer.run() as session:
        train(session.callbacks, feval=metric)
    runs = peer.stored()
    answers.put("kept", judge.curves(expected, runs))
    answers.put("failed", _status(runs, "failed", "killed"))


@probe(
    "End of training",
    steps="`init_model` with early stopping: steps continue",
    finished="... the run is marked finished",
)
def continued(peer: Peer, answers: Answers) -> None:
    first, _ = train([], rounds=5)
    with peer.run() as session:
        stop = lgb.early_stopping(3, verbose=False)
        booster, expected = train(
            [stop, *session.callbacks], rounds=60, params=_FAST, init_model=first
        )
        session.finish(booster, None, None)
    runs = peer.stored()
    answers.put("steps", judge.curves(expected, runs), next(iter(expected.values()))[:2])
    answers.put("finished", _status(runs, "finished"))


@probe("Other behaviour", threads="12 models in 4 threads: each has a run with the full curve")
def threads(peer: Peer, answers: Answers) -> None:
    expected = [train([], seed=seed)[1] for seed in range(12)]
    errors: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            with peer.run() as session:
                train(session.callbacks, seed=seed)
        except Exception as error:  # noqa: BLE001 - counted
            errors.append(error)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(12)))
    cell = judge.one_run_each(expected, peer.stored())
    if errors:
        cell += f", {len(errors)} raised {type(errors[0]).__name__}"
    answers.put("threads", cell, errors[:1])


@probe(
    "Other behaviour",
    callbacks="your list of callbacks is unchanged",
    model="the model is the same as without the callback",
)
def unchanged(peer: Peer, answers: Answers) -> None:
    plain, _ = train([])
    recorded: dict[str, Any] = {}
    with peer.run() as session:
        callbacks = [lgb.record_evaluation(recorded), *session.callbacks]
        before = list(callbacks)
        from .data import sets

        train_set, valid_set = sets()
        booster = lgb.train(
            dict(PARAMS),
            train_set,
            12,
            valid_sets=[train_set, valid_set],
            valid_names=["train", "valid"],
            callbacks=callbacks,
        )
        session.finish(booster, None, None)
    answers.put("callbacks", judge.yes_if(callbacks == before), f"{len(callbacks)} of {before}")
    answers.put("model", judge.yes_if(booster.model_to_string() == plain.model_to_string()))


@probe(
    "Other behaviour",
    timeout=600.0,
    goes_on="the server is down: training continues without delay",
    kept="... and the curve arrives when the server is back",
)
def server_away(peer: Peer, answers: Answers) -> None:
    if not peer.has_server:
        for row in ("goes_on", "kept"):
            answers.put(row, "not run", "no server of its own here")
        return
    peer.leave()
    start = perf_counter()
    done: list[Curves] = []
    with peer.run() as session:
        _, expected = train(session.callbacks)
        seconds = perf_counter() - start
        done.append(expected)
        back = threading.Timer(1.0, peer.come_back)
        back.start()
    back.join()
    cell = judge.YES if seconds < 10 else judge.part(f"held up for {seconds:.0f} s")
    answers.put("goes_on", cell, f"{seconds:.1f} s")
    answers.put("kept", judge.curves(expected, peer.stored()))


@probe("Other behaviour", thin="a curve thinned to N points that keeps the best and the last")
def thinned(peer: Peer, answers: Answers) -> None:
    options = {each for each in peer.options() if _is_for_thinning(each)}
    if not options:
        answers.put("thin", judge.NO, f"no option for it in {sorted(peer.options())}")
        return
    with peer.run(max_points=8) as session:
        booster, expected = train(session.callbacks, rounds=60, params=_FAST)
        session.finish(booster, None, None)
    (run,) = peer.stored()
    best = {"auc": max, "binary_logloss": min}
    for name, curve in expected.items():
        of_it = [set(c) for c in run.curves.values() if set(c) <= set(curve) and len(c) > 1]
        values = np.array([value for _, value in curve])
        top = best[name.split()[1]](values)
        is_good = any(
            len(c) <= 10 and curve[-1] in c and any(value == top for _, value in c) for c in of_it
        )
        if not is_good:
            answers.put("thin", judge.NO, f"{name}: {[len(c) for c in of_it]}")
            return
    answers.put("thin", judge.YES)


def _is_for_thinning(option: str) -> bool:
    return any(word in option for word in ("points", "every", "interval", "sampl", "thin"))
