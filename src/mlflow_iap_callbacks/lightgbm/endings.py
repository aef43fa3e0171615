"""When and how training ends, for which LightGBM has no hook."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .. import delivery, outbox
from ..delivery.run_writer import now_ms

# Nothing can be logged when Python frees an object in the middle of these packages' functions.
_BUSY = (delivery.__name__, outbox.__name__)


class Ending:
    """Watches for the end of one training run.

    ``lgb.train`` and ``lgb.cv`` keep their callbacks in a set. The set is freed when they return,
    after the model got its ``best_score``, or when the exception that they raised is freed. Then
    ``on_end`` is called, in any thread. ``engine`` is the frame of either function, if found.
    """

    def __init__(self, model: Any, engine: FrameType | None, on_end: Callable[[], None]) -> None:
        self._model: Callable[[], Any] = weakref.ref(model)
        self._first_score = vars(model).get("best_score")
        self._pruner: Any = None
        self.has_returned = False
        self.best_iteration = 0
        self.time_ms = 0
        self._watched: weakref.ref[set[Any]] | None = None
        for value in engine.f_locals.values() if engine else ():
            if type(value) is set and value:
                self._pruner = next(filter(None, map(_trial_of, value)), None)
                self._watched = weakref.ref(value, lambda _: self._on_freed(on_end))
                # The model lives as long as the set, and is read when the set is freed.
                self._model = lambda: model
                break

    @property
    def is_watched(self) -> bool:
        """Whether ``on_end`` will be called."""
        return self._watched is not None

    def end(self) -> None:
        """Read from the model how training ended, and release the model."""
        model = self._model()
        self._model, self._watched = lambda: None, None
        if model is None:
            return
        state = vars(model)
        self.best_iteration = max(0, state.get("best_iteration") or 0)
        is_scored = state.get("best_score") is not self._first_score
        self.has_returned = is_scored or self.best_iteration > 0
        self.time_ms = now_ms()

    @property
    def is_pruned(self) -> bool:
        """Whether Optuna's LightGBMPruningCallback pruned the trial."""
        if self._pruner is None:
            return False
        storage = self._pruner.study._storage
        try:
            return bool(storage.get_trial(self._pruner._trial_id).state.name == "PRUNED")
        finally:
            storage.remove_session()

    def _on_freed(self, on_end: Callable[[], None]) -> None:
        self.end()
        if not _is_busy():
            on_end()


def engine_of(frame: FrameType) -> FrameType | None:
    """Find the frame of ``lgb.train`` or ``lgb.cv`` that called a callback."""
    return next((each for each in _stack(frame) if _module(each) == "lightgbm.engine"), None)


def is_training(model: object, frame: FrameType) -> bool:
    """Return whether LightGBM is training a model in a call that leads to this frame."""
    engines = (each for each in _stack(frame) if _module(each) == "lightgbm.engine")
    locals_ = (value for each in engines for value in each.f_locals.values())
    return model is not None and any(value is model for value in locals_)


def status_of(error: BaseException) -> str:
    """The status of a run that ends with an exception."""
    optuna = sys.modules.get("optuna")
    is_pruned = optuna is not None and isinstance(error, optuna.TrialPruned)
    return "KILLED" if is_pruned else "FAILED"


def _trial_of(callback: object) -> Any:
    """Trial of a LightGBMPruningCallback; None for other callbacks."""
    trial = getattr(callback, "_trial", None)
    return trial if hasattr(trial, "should_prune") else None


def _is_busy() -> bool:
    return any(_module(frame).startswith(_BUSY) for frame in _stack(sys._getframe(1)))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))
