"""A key that identifies a study in every process that works on it."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from ..tags import STUDY_MARK

if TYPE_CHECKING:
    import optuna


def study_key(study: optuna.Study) -> str:
    """Key of a study that has at least one trial.

    A name can be reused, so the key includes the start of the first trial. It uses only the part
    that is the same in all time zones, which are multiples of 15 minutes apart. Several processes
    can create studies in memory at the same moment, so these also get a mark, which is pickled with
    them.
    """
    began = study.get_trials(deepcopy=False)[0].datetime_start or datetime.min
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
