"""An Optuna sweep that notes what it logs, in a separate process that can be killed.

It prints its progress: ``ready`` when everything is imported, and more in some modes.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import optuna

from ground_truth import Notes
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback

_PARAMS = {"objective": "binary", "metric": ["auc", "binary_logloss"], "verbosity": -1}
_METRICS = ("auc", "logloss", "error", "lift")


def _say(*words: object) -> None:
    print(*words, flush=True)


def _resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Sweep:
    """Trials with curves, some of them from LightGBM, and notes of what they log.

    Args:
        name: name of the study, and so of the experiment.
        notes: where the notes are written.
        seed: seed of the curves.
        pause: seconds that an iteration takes.
        iterations: minimum and maximum number of iterations in a trial.
    """

    def __init__(
        self, name: str, notes: Notes, seed: int, pause: float, iterations: tuple[int, int]
    ) -> None:
        self.callback = IAPMLflowCallback(tags={"team": "soak"})
        self.study = optuna.create_study(study_name=name)
        self._notes = notes
        self._seed = seed
        self._pause = pause
        self._iterations = iterations
        self._tick = threading.Event()
        self._keys: dict[int, str] = {}
        self._ends: dict[int, int] = {}
        self._trained: dict[int, dict[str, Any]] = {}  # params of the models, by trial

    def run(self, trials: int | None, *, jobs: int = 1, seconds: float | None = None) -> None:
        self.study.optimize(
            self._objective,
            trials,
            timeout=seconds,
            n_jobs=jobs,
            catch=ZeroDivisionError,
            callbacks=[self._before_end, self.callback, self._after_end],
        )

    def _objective(self, trial: optuna.Trial) -> float:
        rng = random.Random(f"{self._seed} {trial.number}")
        run = self.callback.run(trial)
        assert trial.datetime_start is not None
        self._notes.begun(run.key, int(trial.datetime_start.timestamp() * 1000))
        self._keys[trial.number] = run.key
        trial.suggest_float("rate", 0.01, 0.3, log=True)
        trial.suggest_int("leaves", 2, 64)
        trial.suggest_categorical("boosting", ["gbdt", "dart", None])
        rounds = rng.randint(*self._iterations)
        if trial.number % 4 == 3:
            self._train(run, rounds, trial.number)
        else:
            for step in range(rounds):
                values = {name: rng.random() for name in _METRICS}
                with self._notes.around("points", run.key, (step, values)):
                    run.log_metrics(values, step=step)
                self._tick.wait(self._pause)
        if trial.number % 7 == 5:
            raise optuna.TrialPruned
        if trial.number % 11 == 7:
            raise ZeroDivisionError
        return rng.random()

    def _train(self, run: Any, rounds: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        data = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
        callback = IAPLightGBMCallback(run=run)

        def noted(env: Any) -> None:
            values = {f"{item[0]}-{item[1]}": item[2] for item in env.evaluation_result_list}
            with self._notes.around("points", run.key, (env.iteration, values)):
                callback(env)
            self._tick.wait(self._pause)

        params = {**_PARAMS, "num_threads": 1, "seed": seed}
        self._trained[seed] = {**params, "num_iterations": rounds}
        lgb.train(params, data, rounds, valid_sets=[data], callbacks=[noted])

    def _before_end(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        assert trial.datetime_complete is not None
        params = {**self._trained.pop(trial.number, {}), **trial.params}
        content = {
            "params": {name: str(value) for name, value in params.items()},
            "values": dict(zip(["value"], trial.values or (), strict=False)),
            "state": trial.state.name,
            "end_ms": int(trial.datetime_complete.timestamp() * 1000),
        }
        key = self._keys.pop(trial.number)
        self._ends[trial.number] = self._notes.about("end", key, content)

    def _after_end(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self._notes.done(self._ends.pop(trial.number))


def until_killed(sweep: Sweep) -> None:
    sweep.run(None, jobs=2)


def steady(sweep: Sweep, seconds: float) -> None:
    began = time.monotonic()
    sweep.run(None, jobs=8, seconds=seconds)
    trained = time.monotonic() - began
    figures: dict[str, object] = {"seconds of trials": round(trained)}
    figures["is_delivered"] = sweep.callback.flush(240.0)
    figures["seconds of flush"] = round(time.monotonic() - began - trained)
    _say(json.dumps(figures))


def outage(sweep: Sweep, trials: int, seconds: float) -> None:
    """Start while the server is running, go on while it is down, and wait until it is back."""
    sweep.run(20)
    assert sweep.callback.flush(60.0)
    _wait_after("warm")
    began = time.monotonic()
    pace = threading.Event()
    megabytes = []
    for number in range(trials):
        sweep.run(1)
        # Spread over the time, so that the sender tries and fails as often as it normally would.
        pace.wait(max(0.0, began + (number + 1) * seconds / trials - time.monotonic()))
        megabytes.append(_resident_megabytes())
    figures = {
        "seconds": time.monotonic() - began,
        "after_tenth": megabytes[trials // 10],
        "at_end": megabytes[-1],
        "highest": max(megabytes),
    }
    _wait_after("swept")
    figures |= {
        "is_delivered": bool(sweep.callback.flush(420.0)),
        "delivered": _resident_megabytes(),
    }
    _say(json.dumps(figures))


def _wait_after(word: str) -> None:
    """Print a line, and wait for the signal to go on."""
    _say(word)
    sys.stdin.readline()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["until-killed", "steady", "outage"])
    parser.add_argument("--name", required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--trials", type=int, default=0)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _say("ready")
    notes = Notes(given.notes)
    if given.mode == "until-killed":
        until_killed(Sweep(given.name, notes, given.seed, 0.008, (10, 60)))
    elif given.mode == "steady":
        steady(Sweep(given.name, notes, given.seed, 0.03, (10, 90)), given.seconds)
    else:
        outage(Sweep(given.name, notes, given.seed, 0.0, (60, 60)), given.trials, given.seconds)


if __name__ == "__main__":
    main()
