"""Optuna sweeps; libraries are imported by those who use them, for each one's own memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from contender import Contender, Timed, flush, paired

# Asleep, for server and trainer share the machine: what a sweep loses is then what it waited.
OBJECTIVE_SECONDS = 0.1
PARAMS = 8
PAIRED_TRIALS = 10


def _sweep(experiment: str, callback: Callable[..., None] | None = None) -> Contender:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Random: a sampler that learns would take longer with each trial.
    study = optuna.create_study(study_name=experiment, sampler=optuna.samplers.RandomSampler(0))

    def objective(trial: optuna.Trial) -> float:
        values = [trial.suggest_float(f"x{i}", 0, 1) for i in range(PARAMS)]
        time.sleep(OBJECTIVE_SECONDS)
        return sum(values)

    events: list[float] = []
    callbacks = [Timed(callback, events)] if callback else []
    return Contender(
        lambda trials: study.optimize(objective, trials, callbacks=callbacks), events=events
    )


def _ours(experiment: str) -> Contender:
    from mlflow_iap_callbacks import IAPMLflowCallback

    callback = IAPMLflowCallback()
    contender = _sweep(experiment, callback)
    contender.deliver = lambda: flush(callback)
    return contender


def _integration(experiment: str) -> Contender:
    from optuna_integration import MLflowCallback

    return _sweep(experiment, MLflowCallback())


def _paired(experiment: str) -> Contender:
    return paired(_sweep(f"{experiment} without"), _ours(experiment), PAIRED_TRIALS)


CONTENDERS: dict[str, Callable[[str], Contender]] = {
    "none": _sweep,
    "ours": _ours,
    "optuna_integration": _integration,
}
PAIRED: dict[str, Callable[[str], Contender]] = {"ours": _paired}
