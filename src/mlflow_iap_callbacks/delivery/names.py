"""Converts names of metrics, params and tags to names that MLflow accepts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from ..limits import MAX_KEY_LENGTH, MAX_TAG_LENGTH
from ..tags import NAME_TAG

_REFUSED = re.compile(r"[^/\w.\- ]")


def mlflow_name(name: str) -> str:
    """Return ``name`` if MLflow accepts it; otherwise a similar name that no other name gets.

    MLflow rejects names with characters other than letters, digits and ``_ - . / space`` (servers
    on Windows also reject ``:``), names over 250 characters, and names that are not a plain path
    (a leading ``..`` or ``/``, ``//``, ``/../``).
    """
    plain = re.sub(r"(?<![^/])(\.{0,2})(?:/|$)", r"_\1/", _REFUSED.sub("_", name)).rstrip("/")
    plain = f"_{plain}" if plain.startswith("..") else plain
    if plain == name and len(name) <= MAX_KEY_LENGTH:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{plain[: MAX_KEY_LENGTH - 7]}-{mark}"


def with_names_that_mlflow_takes(given: Mapping[str, str]) -> dict[str, str]:
    """Return the tags with accepted names, plus the tags that ``original_names`` returns."""
    names = {name: mlflow_name(name) for name in given}
    return {**{names[name]: text for name, text in given.items()}, **original_names(names)}


def original_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return a tag with the original name for each name that was changed.

    Args:
        names: MLflow's names, by original name.
    """
    return {
        mlflow_name(f"{NAME_TAG}.{taken}"): name[:MAX_TAG_LENGTH]
        for name, taken in names.items()
        if name != taken
    }
