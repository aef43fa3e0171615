"""Which plots a study has, and what happens to those that cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna.visualization
import pytest
from optuna.trial import TrialState, create_trial

from mlflow_iap_callbacks.optuna import plots
from mlflow_iap_callbacks.optuna.packed_study import packed
from optuna_helpers import Direction, new_study

pytestmark = pytest.mark.filterwarnings(
    "ignore:Choices for a categorical:UserWarning",
    "ignore::optuna.exceptions.ExperimentalWarning",
)

_OF_VALUE = {"optimization_history", "edf", "slice", "parallel_coordinate", "param_importances"}
_OF_PAIRS = {"rank", "contour"}


def _plots(study: optuna.Study, *names: str) -> dict[str, plots._Plot]:
    content = json.loads(packed(study, names or ["value"]))
    return {plot.name: plot for plot in plots._plots(plots.drawable(content), content["names"])}


def _study(*directions: Direction, trials: int = 5, params: str = "xy") -> optuna.Study:
    study = new_study(*directions)

    def objective(trial: optuna.Trial) -> Any:
        values = [trial.suggest_float(name, 0, 1) for name in params] or [float(trial.number)]
        return sum(values) if len(study.directions) == 1 else values * len(study.directions)

    study.optimize(objective, trials)
    return study


def test_a_study_has_all_plots_of_its_one_value() -> None:
    expected = {*_OF_VALUE, *_OF_PAIRS, "timeline", "terminator_improvement"}
    assert _plots(_study()).keys() == expected


def test_a_study_has_the_plots_of_each_of_its_values() -> None:
    study = _study("minimize", "maximize", params="x")
    expected = {f"{name}-{number}" for name in _OF_VALUE for number in (0, 1)}
    expected |= {"timeline", "pareto_front", "hypervolume_history"}
    found = _plots(study, "loss", "auc")
    assert found.keys() == expected
    values = [trial.values for trial in study.trials]
    worst = [max(value[0] for value in values), min(value[1] for value in values)]
    assert found["hypervolume_history"].options["reference_point"] == worst


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        (lambda: new_study(), set()),
        (lambda: _study(trials=1, params="x"), _OF_VALUE - {"param_importances"}),
        (lambda: _study(params=""), {"optimization_history", "edf"}),
    ],
)
def test_plots_without_data_are_left_out(study: Any, expected: set[str]) -> None:
    found = _plots(study()).keys() - {"timeline", "terminator_improvement"}
    assert found == expected


def test_a_study_that_reports_values_has_a_plot_of_them_even_if_no_trial_is_complete() -> None:
    study = new_study()
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={0: 1.0}))
    assert _plots(study).keys() == {"timeline", "intermediate_values"}


def test_a_long_study_has_plots_of_some_trials_with_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plots, "_MOST_TRIALS", {"contour": 5, "timeline": 5})
    found = _plots(_study(trials=20))
    numbers = {
        kind: [trial.number for trial in found[kind].study.get_trials()]
        for kind in ("contour", "timeline")
    }
    assert numbers == {"contour": [0, 4, 8, 12, 16], "timeline": [15, 16, 17, 18, 19]}
    assert found["contour"].note == "5 of 20 trials"


def test_optuna_draws_a_part_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "_MOST_TRIALS", {})
    monkeypatch.setattr(plots, "_MOST_TRIALS_ELSEWHERE", 3)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    parts = [plot for plot in _plots(_study(trials=5)).values() if plot.note]
    assert len(parts) == 6
    for part in parts:
        part.draw(optuna.visualization.matplotlib)


def test_plots_show_choices_of_any_kind_as_text() -> None:
    study, layers = new_study(), cast("list[str]", [(1, 2), (3,)])
    study.optimize(lambda trial: len(trial.suggest_categorical("layers", layers)), 4)
    shown = plots.drawable(json.loads(packed(study, ["value"])))
    assert {trial.params["layers"] for trial in shown.trials} <= {"[1, 2]", "[3]"}
    assert [trial.value for trial in shown.trials] == [trial.value for trial in study.trials]


class _Axes:
    """What Optuna's plotting functions return."""

    def __init__(self) -> None:
        self.figure = SimpleNamespace(savefig=lambda path, **_: path.write_bytes(b"picture"))


class _Library:
    """Draws all kinds of plots but some."""

    def __init__(self, *broken: str) -> None:
        self._broken = broken

    def is_available(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        def draw(*_: Any, **__: Any) -> _Axes:
            if name.removeprefix("plot_") in self._broken:
                raise RuntimeError(f"no {name}")
            return _Axes()

        return draw


def _drawn(study: optuna.Study, folder: Path, *, is_quick: bool = False) -> list[str]:
    content = json.loads(packed(study, ["value"]))
    return list(plots.draw_all(content, folder, is_quick=is_quick))


def test_a_plot_that_cannot_be_drawn_is_named_and_the_others_are_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(optuna.visualization, "matplotlib", _Library("slice"))
    monkeypatch.setattr(optuna.visualization, "is_available", lambda: False)
    study = _study()
    (problem,) = _drawn(study, tmp_path)
    assert problem == "There is no slice.png (RuntimeError: no plot_slice)."
    expected = {f"{name}.png" for name in _plots(study).keys() - {"slice"}}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_quick_plots_are_those_that_take_little_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(optuna.visualization, "matplotlib", _Library())
    assert _drawn(_study(), tmp_path, is_quick=True) == []
    assert {path.stem for path in tmp_path.iterdir()} == {
        *("optimization_history", "param_importances", "slice", "parallel_coordinate"),
        *("edf", "timeline"),
    }


def test_without_a_plotting_library_there_are_no_plots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for library in (optuna.visualization, optuna.visualization.matplotlib):
        monkeypatch.setattr(library, "is_available", lambda: False)
    assert _drawn(_study(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_interactive_page_contains_all_plots_and_the_library(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    study = _study(trials=3)
    parts: list[str] = []
    for plot in _plots(study).values():
        plots._add_chart(plot, optuna.visualization, parts)
    plots._write_page("a < b", parts, tmp_path / "plots.html")
    text = (tmp_path / "plots.html").read_text(encoding="utf-8")
    assert "<h1>a &lt; b</h1>" in text
    assert text.count("<h2>") == len(parts) == len(_plots(study))
    assert "<script src" not in text
    assert len(text) > 1_000_000
