"""Converts a study to JSON for the process that draws, whatever its trials contain."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..delivery.plain_values import as_text, start_of_text
from ..limits import MAX_TAG_LENGTH

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_SCALARS = (bool, int, float, str)
_DEEPEST = 50  # levels of lists and dictionaries


def packed(study: optuna.Study, names: Sequence[str]) -> bytes:
    """Return the study as JSON.

    What JSON has no form for becomes text, and long attributes are cut. What cannot be read is left
    out. ``lost`` has a sentence for each kind of change.

    Args:
        study: the study.
        names: names of its objective values.
    """
    packing = _Packing()
    storage, study_id = getattr(study, "_storage"), getattr(study, "_study_id")  # noqa: B009
    content = {
        "name": study.study_name,
        "directions": [direction.name.lower() for direction in study.directions],
        "names": list(names),
        "user_attrs": packing.attrs(study.user_attrs),
        "system_attrs": _system_attrs(storage.get_study_system_attrs(study_id)),
        "trials": packing.trials(study.get_trials(deepcopy=False)),
        "lost": list(packing.lost),
    }
    return json.dumps(content).encode()


def unpacked(
    content: Mapping[str, Any], choice: Callable[[Any], Any] = lambda value: value
) -> list[FrozenTrial]:
    """Return the trials of a packed study.

    Args:
        content: a packed study.
        choice: applied to each categorical choice.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, json_to_distribution

    def distribution(text: str) -> BaseDistribution:
        found = json_to_distribution(text)
        if isinstance(found, CategoricalDistribution):
            return CategoricalDistribution([choice(value) for value in found.choices])
        return found

    known: dict[str, BaseDistribution] = {}
    trials = []
    for trial in content["trials"]:
        texts = trial["distributions"]
        for text in texts.values():
            if text not in known:
                known[text] = distribution(text)
        distributions = {name: known[text] for name, text in texts.items()}
        trials.append(
            optuna.trial.FrozenTrial(
                number=trial["number"],
                trial_id=trial["number"],
                state=optuna.trial.TrialState[trial["state"]],
                value=None,
                values=trial["values"],
                datetime_start=_moment(trial["start"]),
                datetime_complete=_moment(trial["complete"]),
                params={
                    name: choice(value)
                    if isinstance(distributions[name], CategoricalDistribution)
                    else value
                    for name, value in trial["params"].items()
                },
                distributions=distributions,
                user_attrs=trial["user_attrs"],
                system_attrs=trial["system_attrs"],
                intermediate_values={
                    int(step): value for step, value in trial["intermediate_values"].items()
                },
            )
        )
    return trials


class _Packing:
    """Converts trials, and notes what is lost."""

    def __init__(self) -> None:
        self.lost: dict[str, None] = {}
        # The last distribution of each categorical parameter, its choices and its JSON.
        self._known: dict[str, tuple[BaseDistribution, list[Any], str]] = {}

    def trials(self, trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
        found = []
        for trial in trials:
            with self._noting(f"trial {trial.number}"):
                found.append(self._trial(trial))
        return found

    def attrs(self, attrs: Mapping[Any, Any]) -> dict[str, Any]:
        found = {}
        for name, value in attrs.items():
            with self._noting(f"the attribute {name!r}"):
                found[as_text(name)] = _attr(value)
        return found

    def _trial(self, trial: FrozenTrial) -> dict[str, Any]:
        params, distributions = {}, {}
        for name, distribution in trial.distributions.items():
            with self._noting(f"the parameter {name!r}"):
                value, text = self._param(name, trial.params[name], distribution)
                params[name], distributions[name] = value, text
        return {
            "number": trial.number,
            "state": trial.state.name,
            "values": None if trial.values is None else [float(value) for value in trial.values],
            "start": trial.datetime_start and trial.datetime_start.isoformat(),
            "complete": trial.datetime_complete and trial.datetime_complete.isoformat(),
            "params": params,
            "distributions": distributions,
            "user_attrs": self.attrs(trial.user_attrs),
            "system_attrs": _system_attrs(trial.system_attrs),
            "intermediate_values": {
                str(step): float(value) for step, value in trial.intermediate_values.items()
            },
        }

    def _param(self, name: str, value: Any, distribution: BaseDistribution) -> tuple[Any, str]:
        from optuna.distributions import CategoricalDistribution, distribution_to_json

        if not isinstance(distribution, CategoricalDistribution):
            return _plain(value), distribution_to_json(distribution)
        known = self._known.get(name)
        if known is None or known[0] != distribution:
            choices = self._choices(name, distribution.choices)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna warns of lists
                text = distribution_to_json(CategoricalDistribution(choices))
            known = self._known[name] = (distribution, choices, text)
        return known[1][int(distribution.to_internal_repr(value))], known[2]

    def _choices(self, name: str, choices: Iterable[Any]) -> list[Any]:
        found: list[Any] = []
        for choice in map(_number, choices):
            stored = _attr(choice)
            if type(stored) is not type(choice):
                self.lost[
                    f"The choices of {name!r} are text or lists in the study's files, because JSON "
                    "has no form for them."
                ] = None
                if stored in found:  # two objects with the same text
                    stored = f"{stored} ({len(found)})"
            found.append(stored)
        return found

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - such as one of an object's __repr__
            reason = f"{type(error).__name__}: {error}"[:200]
            self.lost[as_text(f"The files lack {what} ({reason}).")] = None


def _attr(value: Any) -> Any:
    """Return a value that JSON has, or text; a long one is cut."""
    text = start_of_text(value, MAX_TAG_LENGTH + 1)
    if len(text) > MAX_TAG_LENGTH:
        return as_text(text[:MAX_TAG_LENGTH])
    try:
        return _plain(value)
    except (TypeError, ValueError):
        return as_text(text)


def _system_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's own attributes, which samplers need as they are."""
    found = {}
    for name, value in attrs.items():
        try:
            found[name] = _plain(value)
        except (TypeError, ValueError):
            continue  # none of Optuna's storages on disk would take it either
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """Return the value with types that JSON has.

    Raises:
        TypeError, ValueError: JSON has no form for it.
    """
    value = _number(value)
    if isinstance(value, str):
        return as_text(value)
    if value is None or isinstance(value, _SCALARS):
        return value
    if depth == _DEEPEST:
        raise ValueError("it is too deep, or contains itself")
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, Mapping):
        return {_key(name): _plain(each, depth + 1) for name, each in value.items()}
    raise TypeError(f"JSON has no form for {type(value).__name__}")


def _number(value: Any) -> Any:
    """Convert NumPy's numbers, and subclasses of Python's types, to Python's own types."""
    if isinstance(value, bool | int | float | str):
        for kind in _SCALARS:
            if isinstance(value, kind):
                # A subclass, such as an enumeration's member, may print as something else.
                return kind(value) if kind is not str else str.__str__(value)
    is_numpy = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_numpy else value


def _key(name: Any) -> str:
    if not isinstance(name, str | int):
        raise TypeError("JSON has no form for this key")
    return as_text(name)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
