"""Converts logged values to values that MLflow accepts, or rejects them at once."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from ..limits import (
    MAX_DATASET_LENGTHS,
    MAX_INPUT_TAG_LENGTH,
    MAX_INTEGER,
)
from .never_raising import never_raising

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset

_logger = logging.getLogger("mlflow_iap_callbacks")

_ENDS = ("FINISHED", "FAILED", "KILLED")
_PLAIN = ("name", "digest", "source_type")
_EMPTY = {"source": "{}"}  # MLflow requires it
_NOT_IN_MODEL_NAMES = re.compile(r"[/:.%\"']")


def as_text(value: object) -> str:
    """Return ``str(value)``, with only characters that UTF-8 can encode."""
    return str(value).encode(errors="replace").decode()


def as_texts(values: Mapping[Any, Any], longest: int) -> dict[str, str]:
    """Return names and values as texts, with long values cut. Skip those that ``str`` fails on."""
    found = {}
    for name, value in values.items():
        with never_raising(f"the value of {name!r}"):
            found[as_text(name)] = as_text(value)[:longest]
    return found


def integer(value: object) -> int:
    """Return an integer that MLflow can store, such as a step.

    Raises:
        TypeError, ValueError, OverflowError: the value is not such an integer.
    """
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is not a number")
    found = int(value)  # type: ignore[call-overload]
    if abs(found) > MAX_INTEGER:
        raise OverflowError(f"{value!r} does not fit into 64 bits")
    return int(found)


def milliseconds(value: object, default: int) -> int:
    """Return a time in milliseconds since 1970; if it is invalid, warn and return the default."""
    if value is None or value == 0:
        return default
    try:
        return integer(value)
    except (TypeError, ValueError, OverflowError):
        _logger.warning(
            "%r is not a time in milliseconds since 1970, so the current time is used.", value
        )
        return default


def end_status(status: object) -> str:
    """Return a run's final status; if it is invalid, warn and return FINISHED."""
    found = str(getattr(status, "name", status)).upper()
    if found in _ENDS:
        return found
    _logger.warning(
        "A run cannot end as %r, so it ends as FINISHED. Use one of %s.", status, ", ".join(_ENDS)
    )
    return "FINISHED"


def artifact_folder(path: str | PathLike[str] | None) -> str | None:
    """Return a folder of a run's artifacts; None for their root.

    Raises:
        ValueError: it is outside of the run's artifacts.
    """
    if path is None:
        return None
    plain = posixpath.normpath(as_text(fspath(path)).replace("\\", "/"))
    if plain.startswith(("/", "..")) or re.match(r"[A-Za-z]:", plain):
        raise ValueError(f"{as_text(path)!r} is not a folder inside the run's artifacts")
    return None if plain == "." else plain


def model_name(name: object) -> str:
    """Return a name that MLflow accepts for a logged model."""
    return _NOT_IN_MODEL_NAMES.sub("_", as_text(name)) or "model"


def dataset_fields(dataset: Dataset) -> dict[str, str | None]:
    """Return the fields of a data set that MLflow stores.

    A name or digest that is too long is cut. JSON that is too long is left out.
    """
    given = dataset.to_dict()
    fields: dict[str, str | None] = {}
    for name, longest in MAX_DATASET_LENGTHS.items():
        value = None if given.get(name) is None else as_text(given[name])
        if value is not None and len(value) > longest:
            is_cut = name in _PLAIN
            value = value[:longest] if is_cut else _EMPTY.get(name)
            _logger.warning(
                "The %s of a data set is %s, because MLflow stores at most %d characters of it.",
                name,
                "cut" if is_cut else "not logged",
                longest,
            )
        fields[name] = value
    return fields


def dataset_tag(value: object) -> str:
    """Return the text of a data set's tag, cut to MLflow's limit."""
    return as_text(value)[:MAX_INPUT_TAG_LENGTH]
