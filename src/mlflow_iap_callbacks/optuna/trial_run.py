"""What the MLflow run of an Optuna trial contains: params, metrics, tags and status."""

from __future__ import annotations

import marshal
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..delivery.ended_run import Results
from ..delivery.plain_values import as_texts
from ..delivery.run_writer import RunWriter
from ..limits import MAX_TAG_LENGTH
from ..tags import STATE_TAG

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

# The same as in mlflow.optuna's storage.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
INTERMEDIATE = "intermediate_value"
_MOST_TEXTS = 100
_texts: dict[tuple[object, ...], dict[str, str]] = {}


def metric_names(given: str | Sequence[str] | None, study: optuna.Study) -> list[str]:
    """Names of a study's objective values.

    Args:
        given: one name, which is numbered from 0 if there are several values, or a name for each
            value; if two are the same, all are numbered. Default: ``study.metric_names``, else
            ``value``.
        study: the study.
    """
    names, count = study.metric_names if given is None else given, len(study.directions)
    if not isinstance(names, str) and names is not None and len(names) == count:
        is_unique = len(set(names)) == count
        return [str(each) if is_unique else f"{each}_{i}" for i, each in enumerate(names)]
    name = names if isinstance(names, str) else "value"
    return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]


def results_of(trial: FrozenTrial, names: Sequence[str]) -> Results:
    """Return a trial's params, values, constraints (0 or less if met) and intermediate values."""
    metrics = dict(zip(names, trial.values or (), strict=False))
    constraints = constraints_of(trial)
    if constraints:
        metrics |= {f"constraint.{name}": value for name, value in constraints.items()}
    reports = trial.intermediate_values
    curves = {INTERMEDIATE: sorted(reports.items())} if reports else {}
    return trial.params, metrics, curves


def log_results(run: RunWriter, results: Results, time_ms: int) -> None:
    """Log results to a run that has a handle."""
    suggestions, metrics, curves = results
    run.log_suggestions(suggestions)
    if metrics:
        run.log_metrics(metrics, timestamp=time_ms)
    for name, points in curves.items():
        run.log_curve(name, points, timestamp=time_ms)


def tags_of(trial: FrozenTrial, directions: Sequence[str], attrs: dict[str, Any]) -> dict[str, Any]:
    """Tags of a trial's run: those of optuna_integration's callback, and some more.

    User attributes, ``attrs``, replace tags of the same name.
    """
    state, system_attrs = trial.state.name, trial.system_attrs
    tags = {
        "number": trial.number,
        "datetime_start": str(trial.datetime_start),
        "datetime_complete": str(trial.datetime_complete),
        "state": state,
        "direction": directions[0] if len(directions) == 1 else str([*directions]),
        **_distribution_tags(trial.distributions),
    }
    constraints = constraints_of(trial)
    if constraints:
        tags["feasible"] = all(value <= 0 for value in constraints.values())
    retried = system_attrs.get("retry_history")
    if retried:
        tags |= {"retry_of": retried[-1], "retry_history": str([*retried])}
    elif "fixed_params" in system_attrs:
        tags["enqueued"] = True
    tags |= attrs
    tags[STATE_TAG] = state
    return tags


def _distribution_tags(distributions: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """Return the texts of distributions, which Optuna builds in a loop in Python.

    Most trials of a study have the same ones, so the texts are kept.
    """
    try:
        # Unlike a comparison, this distinguishes 0, 0.0 and -0.0.
        fields = marshal.dumps([*map(vars, distributions.values())], 2)
    except (TypeError, ValueError):
        return _named(distributions)  # choices of other types
    key = (*distributions, *map(type, distributions.values()), fields)
    found = _texts.get(key)
    if found is None:
        if len(_texts) >= _MOST_TEXTS:
            _texts.clear()
        found = _texts[key] = _named(distributions)
    return found


def _named(distributions: Mapping[str, BaseDistribution]) -> dict[str, str]:
    named = {f"{name}_distribution": each for name, each in distributions.items()}
    return as_texts(named, MAX_TAG_LENGTH)


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """Constraints by name, or by number before Optuna 4.9, where they have no names."""
    found = getattr(trial, "constraints", None)
    if found is not None:
        return dict(found)
    return dict(enumerate(trial.system_attrs.get("constraints") or ()))  # type: ignore[arg-type]


def to_ms(moment: datetime | None) -> int | None:
    """Convert Optuna's local time to milliseconds since 1970, UTC; None if it is earlier."""
    time_ms = 0 if moment is None else int(moment.timestamp() * 1000)
    return time_ms if time_ms > 0 else None
