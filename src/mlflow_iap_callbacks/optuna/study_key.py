"""Keys that identify a study and its trials in every process that works on the study."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tags import STUDY_MARK

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


class TrialId(NamedTuple):
    """Distinguishes a trial from all others that a study's storage, or a copy of it, ever had.

    Studies that were copied, or deleted and created again, have trials with the same number.

    Args:
        number: number of the trial.
        began: its start, in microseconds since the last quarter of an hour. The rest of the time
            depends on the machine's time zone; all zones are multiples of 15 minutes apart.
    """

    number: int
    began: int

    @classmethod
    def of(cls, trial: optuna.Trial | FrozenTrial) -> TrialId:
        """Return the id of a trial that has started."""
        began = trial.datetime_start or datetime.min
        seconds = began.minute % 15 * 60 + began.second
        # `cls()` would call a function in Python.
        return tuple.__new__(cls, (trial.number, seconds * 1_000_000 + began.microsecond))

    def run_key(self, key_of_study: str) -> str:
        """Key of the trial's run."""
        return f"{key_of_study}-{self.number}-{self.began:x}"


def trial_key(key_of_study: str, trial: optuna.Trial | FrozenTrial) -> str:
    """Key of a trial's run."""
    return TrialId.of(trial).run_key(key_of_study)


def former_trial_key(key_of_study: str, number: int) -> str:
    """Key that version 0.1.0 gave to a trial's run, without the trial's start."""
    return f"{key_of_study}-{number}"


def trials_of(study: optuna.Study) -> Sequence[FrozenTrial]:
    """All trials in the study's storage, even if the object shows only some of them."""
    storage: Any = study._storage
    trials: Sequence[FrozenTrial] = storage.get_all_trials(study._study_id, deepcopy=False)
    return trials


def ended_trial(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> FrozenTrial | None:
    """Return a trial of the study as its storage has it; None if it has not ended."""
    storage: Any = study._storage
    frozen: FrozenTrial = storage.get_trial(trial._trial_id)
    return frozen if frozen.state.is_finished() else None


def is_in(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> bool:
    """Whether a trial is one of the study's."""
    trials = trials_of(study)
    is_number = 0 <= trial.number < len(trials)
    return is_number and TrialId.of(trials[trial.number]) == TrialId.of(trial)


def study_key(study: optuna.Study) -> str:
    """Key of a study that has at least one trial.

    A name can be reused, so the key includes the start of the first trial. It uses only the part
    that is the same in all time zones, which are multiples of 15 minutes apart. Several processes
    can create studies in memory at the same moment, so these also get a mark, which is pickled with
    them.
    """
    began = trials_of(study)[0].datetime_start or datetime.min
    moment = (began.minute % 15, began.second, began.microsecond)
    parts = (study.study_name, getattr(study, "_study_id", None), moment)
    mark = () if is_shared(study) else (_mark(study),)
    return hashlib.sha256(repr(parts + mark).encode()).hexdigest()[:16]


def is_shared(study: optuna.Study) -> bool:
    """Whether other processes can work on the study."""
    return type(getattr(study, "_storage", None)).__name__ != "InMemoryStorage"


def _mark(study: optuna.Study) -> str:
    storage, number = study._storage, study._study_id
    mark = storage.get_study_system_attrs(number).get(STUDY_MARK)
    if mark is None:
        mark = uuid.uuid4().hex
        storage.set_study_system_attr(number, STUDY_MARK, mark)
    return str(mark)
