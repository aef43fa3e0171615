"""One training and its run: from the first iteration to its end."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..delivery.lifecycle import before_drain
from ..delivery.run_writer import RunWriter
from .boosters import is_cv
from .curves import Curves
from .datasets import data_of
from .endings import Ending
from .params import features_in, header_of, params_of, used_in

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

_logger = logging.getLogger(__name__)


class Training:
    """Logs what happens, and ends the run if that is the training's own.

    Args:
        run: to write to.
        env: of the first iteration.
        engine: the frame of ``lgb.train`` or ``lgb.cv``, if it was found.
        is_own: whether the run is nobody else's.
        keeps: whether the model is kept for who has more to log of it, and the run left open.
        fold_curves: whether each fold of a cross-validation has curves of its own.
        max_points: of each curve.
        log_datasets: whether the data sets are inputs of the run.
    """

    def __init__(
        self,
        run: RunWriter,
        env: CallbackEnv,
        engine: FrameType | None,
        *,
        is_own: bool,
        keeps: bool,
        fold_curves: bool,
        max_points: int | None,
        log_datasets: bool,
    ) -> None:
        self.run = run
        self.is_own = is_own
        self.keeps = keeps
        self._model = weakref.ref(env.model)
        self._kept_model = env.model if keeps else None
        self._is_cv = is_cv(env.model)
        self.curves = Curves(run, env, max_points)
        self.status: str | None = None
        self._pid = os.getpid()
        self._last = env.end_iteration - 1
        self._reaches_last = False
        self._folds = _fold_values(engine) if fold_curves and self._is_cv else None
        header = header_of(env.model)
        self.used = used_in(header)
        features = features_in(header)
        if log_datasets:
            for data, context in data_of(env.model, *features):
                run.log_input(data, context)
        params = params_of(env.params, self.used)
        # In a run of others', a trial's say, defaults would take the names of its own params.
        run.log_params({**self.used, **params} if is_own else params)
        self.ending = Ending(env.model, engine, self._when_over)
        _live.add(self)

    @property
    def model(self) -> Any:
        """What was trained; None if it is not kept, and gone."""
        return self._model() if self._kept_model is None else self._kept_model

    def log(self, env: CallbackEnv) -> None:
        """Log an iteration."""
        self.curves.log(env, None if self._folds is None else self._folds(env))
        self._reaches_last = env.iteration == self._last
        if self._reaches_last and not self.ending.is_watched and not self.keeps:
            self.end("FINISHED")

    def end(self, status: str | None = None) -> None:
        """Log what is known at the end, and end the run if it is the training's own.

        Args:
            status: FINISHED, FAILED or KILLED. Default: as it turned out.
        """
        if self.status is not None or self._pid != os.getpid():
            return  # a fork has the trainings of its parent, too
        self.ending.end()
        self.status = status or self._outcome()
        _live.discard(self)
        self.curves.log_ends(self.ending.best_iteration)
        if not self.keeps:
            self.finish()

    def finish(self, status: str | None = None) -> None:
        """End the run; nothing happens to one that others own.

        Args:
            status: FINISHED, FAILED or KILLED. Default: as ``end`` found.
        """
        self.keeps, self._kept_model = False, None
        self.status = status or self.status
        if self.is_own:
            self.run.finish(str(self.status), end_time=self.ending.time_ms)

    def _when_over(self) -> None:
        try:
            self.end()
        except Exception as error:  # noqa: BLE001 - no training ends because of its log
            _logger.warning("The end of a training was not logged: %s", error)

    def _outcome(self) -> str:
        is_complete = self.ending.is_in_order or (self._reaches_last and self._is_cv)
        if is_complete:
            return "FINISHED"
        return "KILLED" if self.ending.is_pruned else "FAILED"


_live: set[Training] = set()


def _end_all(_: float) -> None:
    for training in list(_live):
        training.keeps = False
        training._when_over()


before_drain.append(_end_all)


def _fold_values(
    engine: FrameType | None,
) -> Callable[[Any], Iterator[tuple[str, str, int, float]]]:
    """Evaluates each fold again: LightGBM tells a callback mean and standard deviation only."""
    feval = None if engine is None else engine.f_locals.get("feval")

    def values(env: Any) -> Iterator[tuple[str, str, int, float]]:
        for number, booster in enumerate(env.model.boosters):
            for item in booster.eval_valid(feval):
                yield item[0], item[1], number, item[2]

    return values
