"""When and how training ends, for which LightGBM has no hook."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .. import delivery, outbox
from ..delivery import run
from ..delivery.clock import now_ms

# Nothing can be logged when Python frees an object in the middle of these packages' functions.
_BUSY = (delivery.__name__, outbox.__name__)
# The callbacks of one call, in the order in which ``lgb.train`` and ``lgb.cv`` call them.
_LISTS = ("callbacks_before_iter", "callbacks_after_iter")


class Ending:
    """Watches for the end of one training run.

    ``lgb.train`` and ``lgb.cv`` keep their callbacks in a list. It is freed when they return, with
    the model's ``best_score`` set, or when the exception that they raised is freed. Then
    ``on_end`` is called, in any thread. ``engine`` is the frame of either function, if found.
    """

    def __init__(self, model: Any, engine: FrameType | None, on_end: Callable[[], None]) -> None:
        self._model: Callable[[], Any] = weakref.ref(model)
        self._first_score = vars(model).get("best_score")
        self._trial = None if engine is None else _trial_of(engine)
        self.has_returned = False
        # The status if a callback raised; FINISHED if it stopped training early.
        self.status_by_callback: str | None = None
        self.best_iteration = 0
        self.time_ms = 0
        self._watched: weakref.ref[_WatchedCallback] | None = None
        for name in _LISTS:
            callbacks = None if engine is None else engine.f_locals.get(name)
            if type(callbacks) is list and callbacks:
                callbacks[:] = [_WatchedCallback(each, self) for each in callbacks]
                self._watched = weakref.ref(callbacks[0], lambda _: self._on_freed(on_end))
                # The model lives as long as the list, and is read when the list is freed.
                self._model = lambda: model

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
        self.has_returned = is_scored or self.status_by_callback == "FINISHED"
        self.time_ms = now_ms()

    @property
    def is_pruned(self) -> bool:
        """Whether the Optuna trial that training belongs to was pruned."""
        if self._trial is None:
            return False
        storage = self._trial.study._storage
        try:
            return bool(storage.get_trial(self._trial._trial_id).state.name == "PRUNED")
        finally:
            storage.remove_session()

    def _on_freed(self, on_end: Callable[[], None]) -> None:
        self.end()
        if not _is_busy():
            on_end()


class _WatchedCallback:
    """Calls a callback, and notes how training ends if the callback raises an exception."""

    def __init__(self, callback: Callable[[Any], None], ending: Ending) -> None:
        self._callback = callback
        self._ending = ending

    def __call__(self, env: Any) -> None:
        try:
            self._callback(env)
        except BaseException as error:
            self._ending.status_by_callback = status_of(error)
            raise


def engine_of(frame: FrameType) -> FrameType | None:
    """Find the frame of ``lgb.train`` or ``lgb.cv`` that called a callback."""
    return next((each for each in _stack(frame) if _module(each) == "lightgbm.engine"), None)


def is_training(model: object, frame: FrameType) -> bool:
    """Return whether LightGBM is training a model in a call that leads to this frame."""
    engines = (each for each in _stack(frame) if _module(each) == "lightgbm.engine")
    locals_ = (value for each in engines for value in each.f_locals.values())
    return model is not None and any(value is model for value in locals_)


def status_of(error: BaseException) -> str:
    """The status of a run whose training ends with an exception."""
    from lightgbm.callback import EarlyStopException

    return "FINISHED" if isinstance(error, EarlyStopException) else run.status_of(error)


def _trial_of(engine: FrameType) -> Any:
    """The trial for which ``study.optimize`` runs this training; None if there is none."""
    frames = (each for each in _stack(engine) if _module(each) == "optuna.study._optimize")
    return next(filter(None, (frame.f_locals.get("trial") for frame in frames)), None)


def _is_busy() -> bool:
    return any(_module(frame).startswith(_BUSY) for frame in _stack(sys._getframe(1)))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))
