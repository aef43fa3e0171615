"""Converts names of metrics, params and tags to names that MLflow accepts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from mlflow.entities import Run

from ..limits import MAX_KEY_LENGTH, MAX_TAG_LENGTH
from ..outbox import QueuedRun
from ..tags import NAME_TAG

METRICS, PARAMS, TAGS = "metrics", "params", "tags"
_REFUSED = re.compile(r"[^/\w.\- :]")
_REFUSAL = "Names may only contain"  # of MLflow


def mlflow_name(name: str, *, is_windows: bool = False) -> str:
    """Return ``name`` if MLflow accepts it, otherwise a similar one.

    MLflow rejects names with characters other than letters, digits and ``_ - . / : space`` (servers
    on Windows reject ``:`` too), names over 250 characters, and names that are not a plain path
    (a leading ``..`` or ``/``, ``//``, ``/../``). Its autologging writes ``_at_`` for ``@``.
    """
    plain = _REFUSED.sub("_", name.replace("@", "_at_"))
    plain = plain.replace(":", "_") if is_windows else plain
    plain = re.sub(r"(?<![^/])(\.{0,2})(?:/|$)", r"_\1/", plain).rstrip("/")
    plain = f"_{plain}" if plain.startswith("..") else plain
    return plain if len(plain) <= MAX_KEY_LENGTH else _marked(plain, name)


class Names:
    """MLflow's names for the names that are logged to one run; different names stay different.

    Args:
        is_windows: whether the server runs on Windows.
        look: reads the run from MLflow, if others may have logged to it. It is called when the
            first name has to be changed, so that each name is changed as it was before.
    """

    def __init__(self, is_windows: Callable[[], bool], look: Callable[[], Run] | None) -> None:
        self._is_windows = is_windows
        self._look = look
        self._names: dict[tuple[str, str], str] = {}  # by kind and original name
        self._owners: dict[tuple[str, str], str] = {}  # original names by kind and name
        self._unchanged: dict[str, str] = {}  # of metrics, on any server
        # Changed names, in both directions. A changed name has one tag, so no two kinds share it.
        self._originals: dict[str, str] = {}
        self._changed: dict[str, str] = {}

    def of(self, kind: str, names: Iterable[str]) -> dict[str, str]:
        """Return MLflow's names, by original name, for metrics, params or tags."""
        found = {name: self._known(kind, name) for name in names}
        # Names that need no change come first, so that no other name takes theirs.
        unknown = sorted(
            (name for name, taken in found.items() if taken is None),
            key=lambda name: self._similar(name) != name,
        )
        for name in unknown:
            self._add(kind, name)
        return {name: self._names[kind, name] for name in found}

    def unchanged(self, metrics: Mapping[str, Any]) -> Mapping[str, str] | None:
        """Return MLflow's names of metrics, by original name, if all are known and the same.

        This is a shortcut for ``of``. The result may have more names.
        """
        return self._unchanged if self._unchanged.keys() >= metrics.keys() else None

    def tags(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the tags with accepted names, plus a tag for each name that was changed."""
        names = self.of(TAGS, given)
        return {**{names[name]: text for name, text in given.items()}, **original_names(names)}

    def _similar(self, name: str) -> str:
        return mlflow_name(name, is_windows=self._is_windows())

    def _known(self, kind: str, name: str) -> str | None:
        return self._accepted(self._names.get((kind, name)))

    def _accepted(self, name: str | None) -> str | None:
        return None if name is None or (":" in name and self._is_windows()) else name

    def _add(self, kind: str, name: str) -> None:
        found = self._similar(name)
        if found != name:
            self._learn()
        earlier = self._accepted(self._changed.get(name))
        owners = (self._owners.get((kind, found), name), self._originals.get(found, name))
        if earlier is not None:
            found = earlier
        elif owners != (name, name):
            found = _marked(found, name)
        if found != name:
            self._originals[found], self._changed[name] = name, found
        self._names[kind, name] = found
        self._owners[kind, found] = name
        if kind == METRICS and found == name and ":" not in name:
            self._unchanged[name] = name

    def _learn(self) -> None:
        if self._look is None:
            return
        data = self._look().data
        self._look = None
        for original, taken in names_in(data.tags).items():
            self._originals.setdefault(taken, original)
            self._changed.setdefault(original, taken)
        for kind, names in ((METRICS, data.metrics), (PARAMS, data.params), (TAGS, data.tags)):
            for name in names:
                self._owners.setdefault((kind, name), self._originals.get(name, name))


class NamesByRun:
    """The names of each run that is delivered to one server.

    Attributes:
        is_windows: whether the server rejected a colon in a name.
    """

    def __init__(self) -> None:
        self.is_windows = False
        self._known: WeakKeyDictionary[QueuedRun, Names] = WeakKeyDictionary()

    def begin(self, run: QueuedRun, look: Callable[[], Run] | None = None) -> Names:
        """Return the names of a new run, or of one that ``look`` reads from MLflow."""
        self._known[run] = names = Names(lambda: self.is_windows, look)
        return names

    def of(self, run: QueuedRun, look: Callable[[], Run]) -> Names:
        """Return the names of a run, which ``look`` reads from MLflow if others log to it."""
        return self._known.get(run) or self.begin(run, look)

    def forget(self, run: QueuedRun) -> None:
        """Forget the names of a run in favour of another run with the same key."""
        self._known.pop(run, None)

    def learns_from(self, error: Exception, names: Iterable[str]) -> bool:
        """Return whether the error is the server's first rejection of a colon in these names."""
        is_first = not self.is_windows and _REFUSAL in str(error)
        if is_first and any(":" in name for name in names):
            self.is_windows = True
            return True
        return False


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


def names_in(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the names that were changed in a run with these tags, by original name."""
    found = {}
    for tag, original in tags.items():
        taken = tag.removeprefix(f"{NAME_TAG}.")
        similar = {mlflow_name(original, is_windows=is_windows) for is_windows in (False, True)}
        # Others set such tags for names that MLflow accepts.
        if taken != tag and (taken in similar or taken.endswith(f"-{_mark(original)}")):
            found[original] = taken
    return found


def _marked(plain: str, name: str) -> str:
    return f"{plain[: MAX_KEY_LENGTH - 7]}-{_mark(name)}"


def _mark(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
