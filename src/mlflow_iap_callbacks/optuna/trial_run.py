"""What the MLflow run of an Optuna trial contains: params, metrics, tags and status."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..delivery.run_writer import RunWriter
from ..tags import STATE_TAG

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# The same as in mlflow.optuna's storage.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
INTERMEDIATE = "intermediate_value"
_NUMERIC = {("optuna.distributions", f"{kind}Distribution") for kind in ("Float", "Int")}
_FIELDS = {"high", "log", "low", "step"}


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


def log_results(run: RunWriter, trial: FrozenTrial, names: Sequence[str]) -> None:
    """Log a trial's params, values, constraints (0 or less if met) and intermediate values."""
    timestamp = to_ms(trial.datetime_complete) or 0
    if trial.params:
        run.log_suggestions(trial.params)
    metrics = dict(zip(names, trial.values or (), strict=False))
    metrics |= {f"constraint.{name}": value for name, value in constraints_of(trial).items()}
    if metrics:
        run.log_metrics(metrics, timestamp=timestamp)
    if trial.intermediate_values:
        points = sorted(trial.intermediate_values.items())
        run.log_curve(INTERMEDIATE, points, timestamp=timestamp)


def tags_of(trial: FrozenTrial, directions: Sequence[str], attrs: dict[str, Any]) -> dict[str, Any]:
    """Tags of a trial's run: those of optuna_integration's callback, and some more.

    User attributes, ``attrs``, replace tags of the same name.
    """
    constraints = constraints_of(trial).values()
    retried = trial.system_attrs.get("retry_history") or ()
    return {
        "number": trial.number,
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
        "state": trial.state.name,
        "direction": directions[0] if len(directions) == 1 else list(directions),
        **{f"{name}_distribution": _shown(each) for name, each in trial.distributions.items()},
        **({"feasible": all(value <= 0 for value in constraints)} if constraints else {}),
        **({"enqueued": True} if "fixed_params" in trial.system_attrs and not retried else {}),
        **({"retry_of": retried[-1], "retry_history": list(retried)} if retried else {}),
        **attrs,
        STATE_TAG: trial.state.name,
    }


def _shown(distribution: Any) -> object:
    """Return an object with the same text as a distribution.

    A trial's callback needs the text of each param, and Optuna builds it in a loop in Python.
    """
    kind, fields = type(distribution), vars(distribution)
    if (kind.__module__, kind.__name__) in _NUMERIC and fields.keys() == _FIELDS:
        low, high = fields["low"], fields["high"]
        # Zero and minus zero are equal.
        return _text(
            kind.__name__, high or str(high), fields["log"], low or str(low), fields["step"]
        )
    return distribution


@lru_cache(maxsize=1024, typed=True)
def _text(kind: str, high: object, log: bool, low: object, step: object) -> str:
    return f"{kind}(high={high}, log={log}, low={low}, step={step})"


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """Constraints by name, or by number before Optuna 4.9, where they have no names."""
    found = getattr(trial, "constraints", None)
    if found is not None:
        return dict(found)
    return dict(enumerate(trial.system_attrs.get("constraints") or ()))  # type: ignore[arg-type]


def to_ms(moment: datetime | None) -> int | None:
    """Convert Optuna's local time to milliseconds since 1970, UTC."""
    return None if moment is None else int(moment.timestamp() * 1000)
