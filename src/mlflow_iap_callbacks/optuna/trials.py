"""What an MLflow run holds of an Optuna trial."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..tags import STATE_TAG, STUDY_MARK

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# The convention of mlflow.optuna's storage.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
INTERMEDIATE = "intermediate_value"


@dataclass(frozen=True)
class Naming:
    """How the values of a study's trials are called.

    Args:
        given: by the user: a name for all, or one for each; None for the study's own
            (``study.metric_names``), or ``value``.
        own: the study's.
    """

    given: str | Sequence[str] | None
    own: Sequence[str] | None

    def of(self, count: int) -> list[str]:
        """Names of so many values; numbered from 0 where one name stands for several."""
        names = self.own if self.given is None else self.given
        if not isinstance(names, str) and names is not None and len(names) == count:
            return list(names)
        name = names if isinstance(names, str) else "value"
        return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]


def study_key(study: optuna.Study) -> str:
    """The same for a study in every process that works on it, and another for any other study.

    A name alone is not enough: others are made under the same one. So the start of the first trial,
    of which there is one only, is a part of it, without what differs between machines: their local
    times are quarters of an hour apart. Studies in memory may be made by many processes at one
    moment, and carry a mark, by pickle as well.
    """
    began = study.get_trials(deepcopy=False)[0].datetime_start or datetime.min
    moment = (began.minute % 15, began.second, began.microsecond)
    parts = (study.study_name, getattr(study, "_study_id", None), moment)
    mark = () if is_shared(study) else (_mark(study),)
    return hashlib.sha256(repr(parts + mark).encode()).hexdigest()[:16]


def _mark(study: optuna.Study) -> str:
    storage, number = study._storage, study._study_id
    mark = storage.get_study_system_attrs(number).get(STUDY_MARK)
    if mark is None:
        mark = uuid.uuid4().hex
        storage.set_study_system_attr(number, STUDY_MARK, mark)
    return str(mark)


def is_shared(study: optuna.Study) -> bool:
    """Whether other processes can work on the study."""
    return type(getattr(study, "_storage", None)).__name__ != "InMemoryStorage"


def metrics_of(trial: FrozenTrial, naming: Naming) -> dict[str, float]:
    """Values, and constraints (at most 0 where they are kept)."""
    values = trial.values or ()
    constraints = {f"constraint.{name}": value for name, value in constraints_of(trial).items()}
    return {**dict(zip(naming.of(len(values)), values, strict=True)), **constraints}


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """By name; before Optuna 4.9 a trial has none of its own, and numbers for names."""
    if hasattr(trial, "constraints"):
        return dict(trial.constraints)
    return dict(enumerate(trial.system_attrs.get("constraints") or ()))  # type: ignore[arg-type]


def tags_of(trial: FrozenTrial, directions: Sequence[str], attrs: dict[str, Any]) -> dict[str, Any]:
    """Tags as optuna_integration's callback sets them, and more.

    Args:
        trial: the trial.
        directions: of the study.
        attrs: user attributes, which supersede tags of the same name.
    """
    constraints = constraints_of(trial).values()
    retried = trial.system_attrs.get("retry_history") or ()
    return {
        "number": trial.number,
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
        "state": trial.state.name,
        "direction": directions[0] if len(directions) == 1 else list(directions),
        **{f"{name}_distribution": value for name, value in trial.distributions.items()},
        **({"feasible": all(value <= 0 for value in constraints)} if constraints else {}),
        **({"retry_of": retried[-1], "retry_history": list(retried)} if retried else {}),
        **attrs,
        STATE_TAG: trial.state.name,
    }


def curve_of(trial: FrozenTrial) -> list[tuple[int, float]]:
    """What the objective reported, by step."""
    return sorted(trial.intermediate_values.items())


def to_ms(moment: datetime | None) -> int | None:
    """Milliseconds since 1970, UTC, of Optuna's local time."""
    return None if moment is None else int(moment.timestamp() * 1000)
