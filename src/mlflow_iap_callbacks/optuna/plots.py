"""Plots and the table of a study's trials, made in a process of its own.

    python -m mlflow_iap_callbacks.optuna.plots FOLDER < trials.json

So the sweep never waits for a plotting library, and the user's settings of it are left alone.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

_TIMEOUT = 300.0  # seconds
_NICE = 10


@contextmanager
def draw(study: optuna.Study, names: Sequence[str]) -> Iterator[Path]:
    """Make a temporary folder with ``trials.csv`` and those plots that the trials and the installed
    libraries allow.

    Raises:
        OSError, subprocess.SubprocessError: the process failed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-iap-study-") as folder:
        done = subprocess.run(  # noqa: S603 - this module
            [sys.executable, "-m", __name__, folder],
            input=_packed(study, names),
            capture_output=True,
            env={**os.environ, "MPLBACKEND": "Agg"},
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"the plots could not be drawn: {last}")
        yield Path(folder)


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
        # The default evaluator needs scikit-learn and takes seconds for some hundred trials.
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
        except Exception as error:  # noqa: BLE001 - too few trials for this plot, say
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
    folder, content = Path(sys.argv[1]), json.load(sys.stdin)
    _write_table(content, folder / "trials.csv")
    _draw_all(content, folder)


if __name__ == "__main__":
    main()
