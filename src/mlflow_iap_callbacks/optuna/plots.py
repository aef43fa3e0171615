"""Plots and the table of a study's trials, made in a separate process.

    python -m mlflow_iap_callbacks.optuna.plots < paths of files, each with the trials of a study

So the sweep never waits for a plotting library, and the user's plot settings do not change.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import optuna

_SECONDS_BETWEEN_LOOKS = 0.1
_NICE = 10


class OutOfTime(Exception):
    """The plots could not be drawn in the time that was left."""


class PlotProcess:
    """A process that draws one study after the other. Leaving its context kills it.

    Most of its time is spent on importing libraries, so one process serves several studies.
    """

    def __enter__(self) -> PlotProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-iap-study-")
        self._errors = Path(self._folder.name) / "errors.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def draw(
        self, study: optuna.Study, names: Sequence[str], time_left: Callable[[], float]
    ) -> Path:
        """Write ``trials.csv``, and the plots that the trials and the installed libraries allow.

        Args:
            study: the study.
            names: names of its objective values.
            time_left: returns the seconds that are left; called repeatedly.

        Returns:
            The folder that contains them, which exists until the context is left.

        Raises:
            OutOfTime: no time is left.
            OSError: the process failed.
        """
        self._begun += 1
        given = Path(self._folder.name) / f"{self._begun}.json"
        given.write_bytes(_packed(study, names))
        process = self._started()
        stdin = cast("IO[bytes]", process.stdin)
        stdin.write(f"{given}\n".encode())
        stdin.flush()
        folder = given.with_suffix("")
        while not folder.exists():
            if time_left() <= 0:
                raise OutOfTime
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_BETWEEN_LOOKS)
                errors = self._errors.read_text(encoding="utf-8", errors="replace").splitlines()
                raise OSError(f"the plots could not be drawn: {errors[-1] if errors else ''}")
        return folder

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(  # noqa: S603 - this module
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**os.environ, "MPLBACKEND": "Agg"},
                )
        return self._process


def _packed(study: optuna.Study, names: Sequence[str]) -> bytes:
    from optuna.distributions import distribution_to_json

    from .trial_run import constraints_of

    trials = [
        {
            "number": trial.number,
            "state": trial.state.name,
            "values": trial.values,
            "start": trial.datetime_start and trial.datetime_start.isoformat(),
            "complete": trial.datetime_complete and trial.datetime_complete.isoformat(),
            "params": trial.params,
            "distributions": {k: distribution_to_json(v) for k, v in trial.distributions.items()},
            "user_attrs": trial.user_attrs,
            "constraints": list(constraints_of(trial).values()),
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    directions = [direction.name.lower() for direction in study.directions]
    content = {"trials": trials, "directions": directions, "names": names}
    return json.dumps(content, default=str).encode()


def _write_table(content: dict[str, Any], path: Path) -> None:
    kinds = ("params", "user_attrs")
    columns = {
        (kind, name): None for kind in kinds for trial in content["trials"] for name in trial[kind]
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["number", "state", *content["names"], "start", "complete"]
            + [f"{kind}_{name}" for kind, name in columns]
        )
        for trial in content["trials"]:
            values = trial["values"] or [""] * len(content["names"])
            cells = [trial["number"], trial["state"], *values, trial["start"], trial["complete"]]
            rows.writerow(cells + [trial[kind].get(name, "") for kind, name in columns])


def _unpacked(content: dict[str, Any]) -> optuna.Study:
    import optuna
    from optuna.distributions import json_to_distribution

    study = optuna.create_study(directions=content["directions"])
    for trial in content["trials"]:
        state = optuna.trial.TrialState[trial["state"]]
        if state.is_finished():
            study.add_trial(
                optuna.create_trial(
                    state=state,
                    values=trial["values"],
                    params=trial["params"],
                    distributions={
                        name: json_to_distribution(text)
                        for name, text in trial["distributions"].items()
                    },
                    system_attrs={"constraints": trial["constraints"]}
                    if trial["constraints"]
                    else None,
                )
            )
    return study


def _plots(study: optuna.Study, names: list[str], shown: Any) -> dict[str, Callable[[], Any]]:
    """Functions that draw the plots with ``optuna.visualization`` or its ``matplotlib``."""
    from optuna.importance import PedAnovaImportanceEvaluator

    evaluator: Any = PedAnovaImportanceEvaluator
    found: dict[str, Callable[[], Any]] = {}
    if len(names) in (2, 3):
        found["pareto_front"] = partial(shown.plot_pareto_front, study, target_names=names)
    for number, name in enumerate(names):
        end = "" if len(names) == 1 else f"-{number}"
        given: dict[str, Any] = {"target_name": name}
        if len(names) > 1:
            given["target"] = lambda trial, number=number: float(trial.values[number])
        # The default evaluator needs scikit-learn and takes seconds for a few hundred trials.
        importance = {**given, "evaluator": evaluator()}
        for kind, options in (
            ("optimization_history", given),
            ("param_importances", importance),
            ("slice", given),
            ("parallel_coordinate", given),
        ):
            found[f"{kind}{end}"] = partial(getattr(shown, f"plot_{kind}"), study, **options)
    return found


def _draw_all(content: dict[str, Any], folder: Path) -> None:
    from optuna import visualization

    shown: Any
    save: Callable[[Any, Path], None]
    if visualization.is_available():
        shown, end, save = visualization, "html", _save_plotly
    elif visualization.matplotlib.is_available():
        shown, end, save = visualization.matplotlib, "png", _save_axes
    else:
        return
    study = _unpacked(content)
    for name, plot in _plots(study, content["names"], shown).items():
        try:
            save(plot(), folder / f"{name}.{end}")
        except Exception as error:  # noqa: BLE001 - such as too few trials
            print(f"{name}: {error}", file=sys.stderr)  # noqa: T201


def _save_plotly(figure: Any, path: Path) -> None:
    # plotly.js itself is 5 MB.
    figure.write_html(path, include_plotlyjs="cdn")


def _save_axes(axes: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    first = axes if hasattr(axes, "figure") else axes.flat[0]
    first.figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close("all")


def main() -> None:
    if hasattr(os, "nice"):
        os.nice(_NICE)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        given = Path(line.rstrip("\n"))
        content = json.loads(given.read_bytes())
        folder = given.with_suffix(".part")
        folder.mkdir()
        _write_table(content, folder / "trials.csv")
        _draw_all(content, folder)
        folder.rename(given.with_suffix(""))


if __name__ == "__main__":
    main()
