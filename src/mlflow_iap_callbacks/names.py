"""Names that MLflow takes, for metrics, params and tags."""

from __future__ import annotations

import hashlib
import re

_REFUSED = re.compile(r"[^/\w.\- ]")
_LONGEST = 250


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
