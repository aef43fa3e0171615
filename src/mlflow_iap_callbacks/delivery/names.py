"""Names that MLflow takes, for metrics, params and tags."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

_REFUSED = re.compile(r"[^/\w.\- ]")
_LONGEST = 250
_NAME_TAG = "mlflow_iap.name"  # what a name was before it was made one that MLflow takes
MOST_TAGS, LONGEST_TAG = 100, 8000  # of one request, and of a tag


def mlflow_name(name: str) -> str:
    """``name`` where MLflow takes it, else a name made from it that no other name leads to.

    MLflow refuses what is not a letter, a digit or one of ``_ - . / space`` (``:`` on Windows
    servers), names over 250 characters, and those that are no plain path (a leading ``..`` or
    ``/``, ``//``, ``/../``).
    """
    plain = re.sub(r"(?<![^/])(\.{0,2})(?:/|$)", r"_\1/", _REFUSED.sub("_", name)).rstrip("/")
    plain = f"_{plain}" if plain.startswith("..") else plain
    if plain == name and len(name) <= _LONGEST:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{plain[: _LONGEST - 7]}-{mark}"


def with_names_that_mlflow_takes(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags, and those that say what they were called where that is another name."""
    names = {name: mlflow_name(name) for name in tags}
    return {**{names[name]: text for name, text in tags.items()}, **original_names(names)}


def original_names(names: Mapping[str, str]) -> dict[str, str]:
    """Tags for what goes by another name.

    Args:
        names: by the original ones.
    """
    return {
        mlflow_name(f"{_NAME_TAG}.{taken}"): name[:LONGEST_TAG]
        for name, taken in names.items()
        if name != taken
    }
