"""How a training ended, for which LightGBM has no hook."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from .. import delivery, outbox
from ..delivery.run_writer import now_ms

# While these work, nothing can be logged: Python may clean up in the middle of anything.
_BUSY = (delivery.__name__, outbox.__name__)


class Ending:
    """Watches one training.

    ``lgb.train`` and ``lgb.cv`` keep the callbacks in a set of their own. It goes when they return,
    the model at hand and its marks of an orderly end set, or when what they raised is dropped.

    Args:
        model: what is trained, a Booster or a CVBooster.
        engine: the frame of ``lgb.train`` or ``lgb.cv``, if it was found.
        when_over: called as soon as it is over, in whatever thread that happens.
    """

    def __init__(self, model: Any, engine: FrameType | None, when_over: Callable[[], None]) -> None:
        self._model: Callable[[], Any] = weakref.ref(model)
        self._first_score = vars(model).get("best_score")
        self._pruner: Any = None
        self.is_in_order = False
        self.best_iteration = 0
        self.time_ms = 0
        self._watched: weakref.ref[set[Any]] | None = None
        for value in engine.f_locals.values() if engine else ():
            if type(value) is set and value:
                self._pruner = next(filter(None, map(_trial_of, value)), None)
                self._watched = weakref.ref(value, lambda _: self._is_gone(when_over))
                # It lives as long as the set does anyway, and its marks are needed then.
                self._model = lambda: model
                break

    @property
    def is_watched(self) -> bool:
        """Whether ``when_over`` will be called; otherwise only ``end`` tells."""
        return self._watched is not None

    def end(self) -> None:
        """Take down how it stands, or ended; model and data are not held here any more."""
        model = self._model()
        self._model, self._watched = _nothing, None
        if model is None:
            return
        marks = vars(model)
        self.best_iteration = max(0, marks.get("best_iteration") or 0)
        is_scored = marks.get("best_score") is not self._first_score
        self.is_in_order = is_scored or self.best_iteration > 0
        self.time_ms = now_ms()

    @property
    def is_pruned(self) -> bool:
        """Whether an Optuna callback beside ours pruned it."""
        if self._pruner is None:
            return False
        storage = self._pruner.study._storage
        try:
            return bool(storage.get_trial(self._pruner._trial_id).state.name == "PRUNED")
        finally:
            storage.remove_session()

    def _is_gone(self, when_over: Callable[[], None]) -> None:
        self.end()
        if not _is_busy():
            when_over()


def engine_of(frame: FrameType) -> FrameType | None:
    """The frame of ``lgb.train`` or ``lgb.cv`` that a callback was called from."""
    found: FrameType | None = frame
    while found is not None and found.f_globals.get("__name__") != "lightgbm.engine":
        found = found.f_back
    return found


def _nothing() -> None:
    pass


def _trial_of(callback: object) -> Any:
    """Of LightGBMPruningCallback."""
    trial = getattr(callback, "_trial", None)
    return trial if hasattr(trial, "should_prune") else None


def _is_busy() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_BUSY):
            return True
        frame = frame.f_back
    return False
