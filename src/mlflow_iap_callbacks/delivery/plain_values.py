"""Converts logged values to values that MLflow accepts, or rejects them at once."""

from __future__ import annotations

import logging
import posixpath
import re
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar

from ..iap.arguments import check
from ..limits import (
    MAX_DATASET_LENGTHS,
    MAX_INPUT_TAG_LENGTH,
    MAX_INTEGER,
)
from .never_raising import never_raising, warn_of

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset

_logger = logging.getLogger("mlflow_iap_callbacks")

_V = TypeVar("_V", str, float)

_ENDS = ("FINISHED", "FAILED", "KILLED")
_CUT_FIELDS = ("name", "digest", "source_type")
# What may be large, and is converted to text one part after the other.
_TEXTS = (str, bytes, bytearray)
_COLLECTIONS = (list, tuple, dict, set, frozenset, deque, array)
_PLAIN = {str, int, float, bool, type(None), datetime}  # are never converted in parts
_BRACKETS = ((tuple, "()"), ((dict, set, frozenset), "{}"))
_EMPTY = {"source": "{}"}  # MLflow requires it
# Characters: a tenth of a request, so that records fit well into requests.
_MAX_RECORD_LENGTH = 100_000
_NOT_IN_MODEL_NAMES = re.compile(r"[/:.%\"']")


def as_text(value: object) -> str:
    """Return ``str(value)``, with only characters that UTF-8 can encode."""
    text = str(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def as_texts(values: Mapping[Any, Any], longest: int) -> dict[str, str]:
    """Return names and values as texts, with long values cut. Skip those that ``str`` fails on."""
    usual = _usual_texts(values, longest)
    if usual is not None:
        return usual
    found = {}
    for name, value in values.items():
        try:
            found[as_text(name)] = as_text(start_of_text(value, longest))
        except Exception as error:  # noqa: BLE001 - `str` may raise anything
            warn_of(f"the value of {name!r}", error)
    return found


def text_parts(values: Mapping[Any, Any], longest: int, most: int) -> list[dict[str, str]]:
    """Return names and values as texts, in parts that each fit into one request.

    Args:
        values: values by name.
        longest: maximum number of characters of a value; longer ones are cut.
        most: maximum number of values in a part.
    """
    usual = _usual_texts(values, longest)
    if usual and len(usual) <= most:
        return [usual]
    return [*parts_of(as_texts(values, longest), most)]


def _usual_texts(values: Mapping[Any, Any], longest: int) -> dict[str, str] | None:
    """Return names and values as texts, without a loop in Python; None for unusual values.

    All texts together are at most as long as one value may be.
    """
    if not _PLAIN.issuperset(map(type, (*values, *values.values()))):
        return None
    try:
        found = dict(zip(map(str, values), map(str, values.values()), strict=True))
    except ValueError:
        return None  # an integer has too many digits; the other values are logged
    text = "".join((*found, *found.values()))
    return found if len(text) <= longest and text.isascii() else None


def start_of_text(value: object, longest: int) -> str:
    """Return the first characters of ``str(value)``, without converting the rest of a collection.

    Args:
        value: any object.
        longest: maximum number of characters.
    """
    kind = type(value)
    is_plain = kind in _PLAIN or kind.__str__ is not object.__str__
    if is_plain or not _is_large(value, longest // 8):
        return str(value)[:longest]
    text, length = [], 0
    for piece in _pieces(value, longest, set()):
        text.append(piece)
        length += len(piece)
        if length >= longest:
            break
    return "".join(text)[:longest]


def _is_large(value: object, most: int) -> bool:
    """Return whether a value has more than ``most`` parts and characters."""
    size, waiting = 0, [value]
    while waiting and size <= most:
        each = waiting.pop()
        if isinstance(each, _TEXTS):
            size += len(each)
        elif isinstance(each, _COLLECTIONS):
            size += 1 + len(each)
            parts = each.items() if isinstance(each, dict) else each
            waiting += parts if size <= most else ()
        else:
            size += 1
    return size > most


def _pieces(value: object, longest: int, around: set[int]) -> Iterator[str]:
    """Yield the text of a value; that of a collection piece by piece."""
    if isinstance(value, _TEXTS):
        yield repr(value[:longest])
        return
    if not isinstance(value, _COLLECTIONS):
        yield repr(value)
        return
    brackets = next((text for kind, text in _BRACKETS if isinstance(value, kind)), "[]")
    if id(value) in around:
        yield f"{brackets[0]}...{brackets[1]}"
        return
    around.add(id(value))
    is_named = type(value) not in (list, tuple, dict, set)
    yield f"{type(value).__name__}({brackets[0]}" if is_named else brackets[0]
    for number, each in enumerate(value.items() if isinstance(value, dict) else value):
        yield ", " if number else ""
        if isinstance(value, dict):
            yield from _pieces(each[0], longest, around)
            yield ": "
        yield from _pieces(each[1] if isinstance(value, dict) else each, longest, around)
    around.discard(id(value))
    yield f"{brackets[1]})" if is_named else brackets[1]


def as_number(value: Any) -> float:
    """Return a number, or the only element of an array or tensor, as MLflow does.

    Raises:
        Exception: whatever the value's own methods raise, if it is not a number.
    """
    # By `float`, NumPy before 2.4 converts an array with a warning.
    return float(value.item() if hasattr(value, "item") else value)


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
        found = integer(value)
        if found > 0:
            return found
    except (TypeError, ValueError, OverflowError):
        pass
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
        raise ValueError(f"{as_text(path)!r} is not a path inside the run's artifacts")
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
            is_cut = name in _CUT_FIELDS
            value = value[:longest] if is_cut else _EMPTY.get(name)
            _logger.warning(
                "The %s of a data set is longer than the %d characters that MLflow stores, so it "
                "is %s.",
                name,
                longest,
                "cut" if is_cut else "not logged",
            )
        fields[name] = value
    return fields


def dataset_tag(value: object) -> str:
    """Return the text of a data set's tag, cut to MLflow's limit."""
    return as_text(value)[:MAX_INPUT_TAG_LENGTH]


def artifact_path_of(artifact_file: str) -> str:
    """Return the path of a file in a run's artifacts; raise an exception if it is not valid."""
    path = artifact_folder(check("artifact_file", artifact_file))
    if not path:
        raise ValueError("the file has no name")
    return path


def parts_of(values: Mapping[str, _V], most: int) -> Iterator[dict[str, _V]]:
    """Split values into parts that each fit into one request."""
    texts = (*values, *map(str, values.values()))
    if 0 < len(values) <= most and sum(map(len, texts)) <= _MAX_RECORD_LENGTH:
        yield dict(values)  # the usual case, without a loop in Python
        return
    part: dict[str, _V] = {}
    size = 0
    for name, value in values.items():
        size += len(name) + (len(value) if isinstance(value, str) else 0)
        if len(part) == most or (part and size > _MAX_RECORD_LENGTH):
            yield part
            part, size = {}, 0
        part[name] = value
    if part:
        yield part


def as_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return names as texts and values as numbers. Skip other values, with a warning."""
    are_numbers = {float}.issuperset(map(type, values.values()))
    if are_numbers and {str}.issuperset(map(type, values)) and "".join(values).isascii():
        return dict(values)
    numbers = {}
    for name, value in values.items():
        with never_raising(f"metric {name!r}"):
            numbers[as_text(name)] = as_number(value)
    return numbers
