"""Draws the plots of studies: PNG files with matplotlib, and one interactive page with plotly.

python -m mlflow_iap_callbacks.optuna.plots < paths of files, each with a packed study
"""

from __future__ import annotations

import copy
import html
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .packed_study import unpacked
from .plot_process import END
from .study_files import STUDY, TABLE, write_study, write_table

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_NICE = 10
# The interactive page.
PAGE = "plots.html"
# These take little time and come first.
_QUICK = (
    *("optimization_history", "param_importances", "slice", "parallel_coordinate"),
    *("pareto_front", "hypervolume_history", "edf", "timeline"),
)
# How many trials are shown at most. The contour of n trials has n * n points on the page.
_MOST_TRIALS = {"contour": 200, "timeline": 200, "intermediate_values": 200}
_MOST_TRIALS_ELSEWHERE = 1000
_MOST_PARAMS = 3  # in a matrix of plots, the most important ones
_MOST_OBJECTIVES = 4  # for a hypervolume, which takes exponential time
_MOST_CHARACTERS = 5_000_000  # of one plot on the page
_FORMS = (type(None), bool, int, float, str)


@dataclass
class _Plot:
    """A plot.

    Args:
        name: name of its file.
        kind: as in ``optuna.visualization.plot_KIND``.
        study: the study, or some of its trials.
        options: arguments.
        note: how many trials are shown, if not all are.
    """

    name: str
    kind: str
    study: Any
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def draw(self, library: Any) -> Any:
        return getattr(library, f"plot_{self.kind}")(self.study, **self.options)


def drawable(content: Mapping[str, Any]) -> optuna.Study:
    """Return a packed study with choices that plots can show: numbers and text."""
    import optuna

    study = optuna.create_study(study_name=content["name"], directions=content["directions"])
    for trial in unpacked(content, choice=_shown):
        study.add_trial(trial)
    return study


def _shown(choice: Any) -> Any:
    return choice if isinstance(choice, _FORMS) else str(choice)


def _plots(study: optuna.Study, names: Sequence[str]) -> Iterator[_Plot]:
    """The plots for which the study has data."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if any(trial.datetime_start for trial in trials):
        yield _of_some("timeline", study, [t for t in trials if t.datetime_start], is_recent=True)
    reporting = [trial for trial in trials if trial.intermediate_values]
    if reporting:
        yield _of_some("intermediate_values", study, reporting)
    if not complete:
        return
    if len(names) in (2, 3):
        yield _Plot("pareto_front", "pareto_front", study, {"target_names": list(names)})
    if 2 <= len(names) <= _MOST_OBJECTIVES:
        plot = _of_some("hypervolume_history", study, complete)
        plot.options["reference_point"] = _worst(study, complete)
        yield plot
    if len(names) == 1:
        yield _improvement(study, complete)
    for number, name in enumerate(names):
        target = None if len(names) == 1 else partial(_value, number=number)
        for plot in _plots_of_value(study, complete, target):
            plot.name += "" if target is None else f"-{number}"
            plot.options |= {"target": target, "target_name": name}
            yield plot


def _plots_of_value(
    study: optuna.Study, complete: Sequence[FrozenTrial], target: Any
) -> Iterator[_Plot]:
    """The plots of one objective value."""
    yield _Plot("optimization_history", "optimization_history", study)
    yield _Plot("edf", "edf", study)
    if not any(trial.params for trial in complete):
        return
    yield _of_some("slice", study, complete)
    yield _of_some("parallel_coordinate", study, complete)
    important = list(dict.fromkeys(name for trial in complete for name in trial.params))
    if len(complete) > 1:
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        # The default evaluator needs scikit-learn and takes seconds for a few hundred trials.
        evaluator: Any = PedAnovaImportanceEvaluator
        options = {"evaluator": evaluator()}
        yield _Plot("param_importances", "param_importances", study, options)
        try:
            found = get_param_importances(study, evaluator=evaluator(), target=target)
            important = sorted(important, key=lambda name: -found.get(name, 0.0))
        except Exception as error:  # noqa: BLE001 - such as too few different values
            print(f"param_importances: {error}", file=sys.stderr)  # noqa: T201
    if len(important) > 1:
        for kind in ("rank", "contour"):
            plot = _of_some(kind, study, complete)
            plot.options["params"] = important[:_MOST_PARAMS]
            yield plot


def _of_some(
    kind: str, study: optuna.Study, trials: Sequence[FrozenTrial], *, is_recent: bool = False
) -> _Plot:
    """A plot of no more trials than it can show: the last ones, or every n-th."""
    most = _MOST_TRIALS.get(kind, _MOST_TRIALS_ELSEWHERE)
    if len(trials) <= most:
        return _Plot(kind, kind, study)
    step = len(trials) / most
    some = trials[-most:] if is_recent else [trials[int(n * step)] for n in range(most)]
    return _Plot(kind, kind, _with_trials(study, some), note=f"{most} of {len(trials)} trials")


def _with_trials(study: optuna.Study, some: Sequence[FrozenTrial]) -> optuna.Study:
    """Return the study with only some of its trials, which keep their numbers."""
    part: Any = copy.copy(study)
    part.get_trials = lambda deepcopy=True, states=None: [
        trial for trial in some if states is None or trial.state in states
    ]
    return part  # type: ignore[no-any-return]


def _improvement(study: optuna.Study, complete: Sequence[FrozenTrial]) -> _Plot:
    """A plot of how many more trials may fail to improve before it is time to stop.

    The default evaluators fit a model for each trial, need PyTorch, and take minutes.
    """
    from optuna.terminator import BestValueStagnationEvaluator

    plot = _of_some("terminator_improvement", study, complete)
    plot.options["improvement_evaluator"] = BestValueStagnationEvaluator()
    return plot


def _worst(study: optuna.Study, complete: Sequence[FrozenTrial]) -> list[float]:
    """The worst finite value of each objective."""
    found = []
    for number, direction in enumerate(study.directions):
        values = [trial.values[number] for trial in complete if trial.values]
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        found.append(max(finite) if direction.name == "MINIMIZE" else min(finite))
    return found


def _value(trial: FrozenTrial, number: int) -> float:
    return float(trial.values[number])


def draw_all(content: Mapping[str, Any], folder: Path, *, is_quick: bool) -> Iterator[str]:
    """Draw the plots of a packed study; yield a sentence for each that could not be.

    Args:
        content: a packed study.
        folder: for the files.
        is_quick: whether to draw only PNG files of what takes little time.
    """
    from optuna import visualization

    images: Any = visualization.matplotlib
    charts: Any = visualization
    if not images.is_available() and not charts.is_available():
        return
    plots = list(_plots(drawable(content), content["names"]))
    quick = sorted(
        (plot for plot in plots if plot.kind in _QUICK), key=lambda plot: _QUICK.index(plot.kind)
    )
    others = [plot for plot in plots if plot.kind not in _QUICK]
    if images.is_available():
        yield from _save_images(quick, images, folder)
    if is_quick:
        return
    if charts.is_available():
        yield from _save_page(content["name"], quick + others, charts, folder)
    if images.is_available():
        yield from _save_images(others, images, folder)


def _trying(what: str, write: Callable[[], object]) -> Iterator[str]:
    try:
        write()
    except Exception as error:  # noqa: BLE001 - the others are written
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield f"There is no {what} ({reason})."


def _save_images(plots: Iterable[_Plot], library: Any, folder: Path) -> Iterator[str]:
    for plot in plots:
        yield from _trying(f"{plot.name}.png", partial(_save_image, plot, library, folder))


def _save_image(plot: _Plot, library: Any, folder: Path) -> None:
    import matplotlib.pyplot as plt

    try:
        axes = plot.draw(library)
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        if not hasattr(axes, "figure") and axes.ndim > 1:
            figure.set_size_inches(4 * axes.shape[1], 3.5 * axes.shape[0])
        if plot.note:
            figure.text(0.0, 0.0, plot.note, fontsize="small")
        save = partial(figure.savefig, format="png", dpi=120, bbox_inches="tight")
        _write_whole(folder / f"{plot.name}.png", save)
    finally:
        plt.close("all")


def _save_page(name: str, plots: Iterable[_Plot], library: Any, folder: Path) -> Iterator[str]:
    parts: list[str] = []
    for plot in plots:
        add = partial(_add_chart, plot, library, parts)
        yield from _trying(f"{plot.name} in {PAGE}", add)
    yield from _trying(
        PAGE, partial(_write_whole, folder / PAGE, partial(_write_page, name, parts))
    )


def _add_chart(plot: _Plot, library: Any, parts: list[str]) -> None:
    figure = plot.draw(library)
    text = figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False)
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, too many for an interactive page")
    title = html.escape(plot.name.replace("_", " "))
    parts.append(f"<h2>{title}</h2>\n<p>{plot.note}</p>\n{text}")


def _write_page(name: str, parts: Iterable[str], path: Path) -> None:
    from plotly.offline import get_plotlyjs

    # The whole library is in the page, because networks with a proxy may not reach its CDN.
    path.write_text(
        f"<!DOCTYPE html>\n<html><head><meta charset='utf-8'><title>{html.escape(name)}</title>\n"
        "<style>body { font-family: sans-serif; margin: 1em }</style>\n"
        f"<script>{get_plotlyjs()}</script></head>\n<body><h1>{html.escape(name)}</h1>\n{''.join(parts)}</body></html>\n",
        encoding="utf-8",
    )


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that nobody sees before it is complete."""
    part = path.with_name(f".{path.name}")
    write(part)
    part.replace(path)


def _write_files(given: Path) -> None:
    content = json.loads(given.read_bytes())
    folder = given.with_suffix("")
    folder.mkdir()
    problems = list(content["lost"])
    for name, write in ((TABLE, write_table), (STUDY, write_study)):
        write_one = partial(_write_whole, folder / name, partial(write, content))
        problems += _trying(name, write_one)
    try:
        problems += draw_all(content, folder, is_quick=given.stem.endswith("-quick"))
    except Exception as error:  # noqa: BLE001 - the files are written
        problems.append(f"There are no plots ({type(error).__name__}: {error}).")
    _write_whole(folder / END, lambda path: path.write_text(json.dumps(problems), encoding="utf-8"))


def main() -> None:
    if hasattr(os, "nice"):
        os.nice(_NICE)
    if hasattr(signal, "pthread_sigmask"):  # the thread that started this process blocks signals
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        _write_files(Path(line.rstrip("\n")))


if __name__ == "__main__":
    main()
