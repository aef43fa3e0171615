"""Optuna sweeps. Libraries are imported where they are used, to compare memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from contender import Contender, Timed, flush, paired

PARAMS = 8
PAIRED_TRIALS = 10

Callback = Callable[..., None]
Decorator = Callable[[Callable[..., float]], Callable[..., float]]


def _sweep(
    experiment: str,
    callback: Callback | None = None,
    *,
    seconds: float = 0.1,
    jobs: int = 1,
    decorator: Decorator = lambda objective: objective,
) -> Contender:
    """Run trials that sleep, because the server and the sweep share the machine. So the time that a
    sweep loses is the time that it waited."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Random, because other samplers take longer with each trial.
    study = optuna.create_study(study_name=experiment, sampler=optuna.samplers.RandomSampler(0))

    @decorator
    def objective(trial: optuna.Trial) -> float:
        values = [trial.suggest_float(f"x{i}", 0, 1) for i in range(PARAMS)]
        time.sleep(seconds)
        return sum(values)

    events: list[float] = []
    callbacks = [Timed(callback, events)] if callback else []

    def run(trials: int) -> None:
        study.optimize(objective, trials, n_jobs=jobs, callbacks=callbacks)

    return Contender(run, events=events)


def _ours(experiment: str, *, is_tracked: bool = False, **sweep: Any) -> Contender:
    from mlflow_iap_callbacks import IAPMLflowCallback

    callback = IAPMLflowCallback()
    if is_tracked:
        sweep["decorator"] = callback.track_in_mlflow()
    contender = _sweep(experiment, callback, **sweep)
    contender.deliver = lambda: flush(callback)
    return contender


def _drawing(experiment: str, **sweep: Any) -> Contender:
    """This package's callback, drawing plots of the study continuously, not every ten minutes."""
    from mlflow_iap_callbacks.optuna import reporter

    reporter.REPORT_EVERY = reporter.DRAW_EVERY = 0.1
    reporter.MOST_SHARE = 1.0
    return _ours(experiment, **sweep)


def _integration(experiment: str, *, is_tracked: bool = False, **sweep: Any) -> Contender:
    from optuna_integration import MLflowCallback

    callback = MLflowCallback()
    if is_tracked:
        sweep["decorator"] = callback.track_in_mlflow()
    return _sweep(experiment, callback, **sweep)


def _paired(experiment: str) -> Contender:
    return paired(_sweep(f"{experiment} without"), _ours(experiment), PAIRED_TRIALS)


CONTENDERS: dict[str, Callable[[str], Contender]] = {
    "none": _sweep,
    "ours": _ours,
    "optuna_integration": _integration,
}
PAIRED: dict[str, Callable[[str], Contender]] = {"ours": _paired}

_AT_ONCE: Any = {"jobs": 8, "seconds": 1.0}
AT_ONCE: dict[str, Callable[[str], Contender]] = {
    "none": partial(_sweep, **_AT_ONCE),
    "ours": partial(_ours, **_AT_ONCE),
    "ours, track_in_mlflow": partial(_ours, is_tracked=True, **_AT_ONCE),
    "optuna_integration": partial(_integration, **_AT_ONCE),
    "the same, track_in_mlflow": partial(_integration, is_tracked=True, **_AT_ONCE),
}
LONG: dict[str, Callable[[str], Contender]] = {
    "none": partial(_sweep, seconds=0.01),
    "ours": partial(_ours, seconds=0.01),
    "ours, always drawing": partial(_drawing, seconds=0.01),
}
