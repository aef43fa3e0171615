"""What MLflow's pages show of a study first: its run's description, and a view of its trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..delivery.names import mlflow_name
from ..delivery.plain_values import start_of_text
from ..delivery.run import TRAINING
from ..limits import MAX_EXPERIMENT_TAG_LENGTH
from ..plurals import counted
from ..tags import VIEW_TAG
from .plots import PAGE
from .study_files import STUDY

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_MOST_ROWS = 20  # params, and trials of a Pareto front
_MOST_PROBLEMS = 5
_LONGEST = 80  # characters of a value
_MOST_COLUMNS = 30


def view_tags(
    key: str, names: Sequence[str], params: Iterable[str], *, is_maximized: bool
) -> dict[str, str]:
    """Return the experiment's tag with the view of the runs that ``description`` links to.

    It has columns for the values and params of trials, and the best trial first.

    Args:
        key: the study's key.
        names: names of the objective values.
        params: names of params.
        is_maximized: whether the first value is maximized.
    """
    columns = [f"metrics.`{mlflow_name(name)}`" for name in names]
    columns += [f"params.`{mlflow_name(name)}`" for name in params]
    view: dict[str, Any] = {"orderByKey": columns[0], "orderByAsc": not is_maximized}
    for most in range(_MOST_COLUMNS, 0, -1):
        text = json.dumps({**view, "selectedColumns": columns[:most]})
        if len(text) <= MAX_EXPERIMENT_TAG_LENGTH:
            return {f"{VIEW_TAG}.{key}": text}
    return {}


def description(
    *,
    study_name: str,
    names: Sequence[str],
    directions: Sequence[str],
    counts: Mapping[str, int],
    best: Sequence[FrozenTrial],
    key: str,
    run_id: str | None,
    experiment_id: str | None,
    files: Iterable[str],
    problems: Iterable[str],
) -> str:
    """Return a study's description in Markdown, the most important part first.

    MLflow's page shows the first lines, and the rest on a click.

    Args:
        study_name: name of the study.
        names: names of its objective values.
        directions: MINIMIZE or MAXIMIZE, for each.
        counts: number of trials by state.
        best: the best trial, or those on the Pareto front.
        key: the study's key.
        run_id: id of the study's run; without it, there are no links.
        experiment_id: id of its experiment.
        files: names of the files in ``study``.
        problems: sentences on what is missing in the files.
    """
    sections = [_best_in_a_line(names, directions, best)]
    states = ", ".join(f"{number} {state.lower()}" for state, number in counts.items())
    sections.append(f"{counted(sum(counts.values()), 'trial')}: {states}")
    if run_id is not None and experiment_id is not None:
        sections.append(_links(f"#/experiments/{experiment_id}/runs", run_id, key, files))
    sections.append(_table(names, best))
    sections += [_text(problem, 3 * _LONGEST) for problem in list(problems)[:_MOST_PROBLEMS]]
    if STUDY in files and run_id is not None:
        sections.append(_how_to_resume(study_name, run_id))
    return "\n\n".join(filter(None, sections))


def _best_in_a_line(
    names: Sequence[str], directions: Sequence[str], best: Sequence[FrozenTrial]
) -> str:
    aims = ", ".join(
        f"{_text(name)} ({direction.lower()})"
        for name, direction in zip(names, directions, strict=False)
    )
    if not best:
        return f"**No complete trial yet** · {aims}"
    if len(names) > 1:
        return f"**{counted(len(best), 'trial')} on the Pareto front** · {aims}"
    return f"**Best: trial {best[0].number}, {_text(names[0])} {best[0].value:g}** · {aims}"


def _links(runs: str, run_id: str, key: str, files: Iterable[str]) -> str:
    view = f"{runs}?viewStateShareKey={key}&{TRAINING}"
    found = [f"[All trials with values and params]({view})"]
    pictures = [name for name in files if name.endswith((".html", ".png"))]
    for name in sorted(pictures, key=lambda name: (name != PAGE, name)):
        title = "interactive plots" if name == PAGE else name.removesuffix(".png").replace("_", " ")
        found.append(f"[{title}]({runs}/{run_id}/artifacts/study/{name}?{TRAINING})")
    return " · ".join(found)


def _table(names: Sequence[str], best: Sequence[FrozenTrial]) -> str:
    """The params of the best trial; for several objectives, a row for each trial of the front."""
    if not best:
        return ""
    if len(names) == 1:
        rows = [["param", "value"], *best[0].params.items()]
    else:
        params = list(dict.fromkeys(name for trial in best for name in trial.params))
        rows = [["trial", *names, *params]]
        for trial in best:
            values = [f"{value:g}" for value in trial.values]
            rows.append([trial.number, *values, *(trial.params.get(param, "") for param in params)])
    if len(rows) == 1:
        return ""
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows[: _MOST_ROWS + 1]]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    left = len(rows) - 1 - _MOST_ROWS
    return "\n".join(lines) + (f"\n\nand {left} more" if left > 0 else "")


def _how_to_resume(study_name: str, run_id: str) -> str:
    return f"""**Resume the study** from its file `study/{STUDY}`:

```python
import mlflow
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

path = mlflow.artifacts.download_artifacts(run_id="{run_id}", artifact_path="study/{STUDY}")
study = optuna.load_study(
    study_name={study_name!r}, storage=JournalStorage(JournalFileBackend(path))
)
study.optimize(objective, n_trials=10)
```"""


def _cell(value: Any) -> str:
    return _text(f"{value:g}" if isinstance(value, float) else value)


def _text(value: Any, longest: int = _LONGEST) -> str:
    """Return text that Markdown shows as it is."""
    text = start_of_text(value, longest).translate(_SPECIAL)
    return " ".join(text.split())


_SPECIAL = {ord(character): f"\\{character}" for character in "\\`*_{}[]<>()#+!|~$&"}
