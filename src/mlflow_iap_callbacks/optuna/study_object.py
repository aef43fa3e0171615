"""Other objects for a user's study, so that the user's own object is not kept alive."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..delivery.plain_values import as_texts

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_LONGEST_ATTR = 10_000  # characters


def whole_study(study: optuna.Study) -> optuna.Study:
    """Return another object for the same study in the same storage, which has all of its trials.

    The user's object may be of a class that shows only some of them.
    """
    import optuna

    whole = optuna.Study.__new__(optuna.Study)
    whole.__setstate__(study.__getstate__())
    return whole


def without_objects(study: optuna.Study) -> optuna.Study:
    """Return a copy of a study in memory, with texts in place of the objects in its attributes."""
    import optuna

    storage = optuna.storages.InMemoryStorage()
    with _without_log(type(storage).__module__):  # Optuna announces each new study
        study_id = storage.create_new_study(study.directions, study.study_name)
    for name, value in _plain(study.user_attrs).items():
        storage.set_study_user_attr(study_id, name, value)
    system_attrs = getattr(study, "_storage").get_study_system_attrs(study._study_id)  # noqa: B009
    for name, value in system_attrs.items():
        storage.set_study_system_attr(study_id, name, value)
    for trial in study.get_trials(deepcopy=False):
        storage.create_new_trial(study_id, template_trial=_plain_trial(trial))
    return optuna.Study(study.study_name, storage, study.sampler, study.pruner)


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Discard what this thread logs to a logger."""
    thread = threading.get_ident()

    def is_of_another(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger(name)
    logger.addFilter(is_of_another)
    try:
        yield
    finally:
        logger.removeFilter(is_of_another)


def _plain_trial(trial: FrozenTrial) -> FrozenTrial:
    plain = type(trial).__new__(type(trial))
    plain.__dict__.update(trial.__dict__)
    plain.user_attrs = _plain(trial.user_attrs)
    return plain


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    objects = {name: value for name, value in attrs.items() if not _is_plain(value)}
    return {**attrs, **dict.fromkeys(objects), **as_texts(objects, _LONGEST_ATTR)}


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, int | float):
        return True
    try:
        return len(json.dumps(value)) <= _LONGEST_ATTR
    except (TypeError, ValueError, RecursionError):
        return False
