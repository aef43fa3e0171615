"""Logs one call of LightGBM, from the first iteration to the end."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..delivery.closing import Deadline
from ..delivery.lifecycle import end_at_exit
from ..delivery.never_raising import never_raising
from ..delivery.run import IAPRun
from .boosters import is_cv, names_of
from .curves import Curves
from .datasets import data_of
from .endings import Ending
from .estimators import fitting
from .inputs import first_rows
from .params import features_in, header_of, name_of, params_of, used_in
from .prefixed_run import PrefixedRun

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv


class Training:
    """Logs one call of LightGBM, and ends the run unless the run was given to the callback.

    ``env`` is the first iteration, and ``engine`` the frame of ``lgb.train`` or ``lgb.cv``, if it
    was found. With ``keeps_model``, the model is kept and the run stays open until ``finish``.
    """

    def __init__(
        self,
        run: IAPRun | PrefixedRun,
        env: CallbackEnv,
        engine: FrameType | None,
        *,
        is_own: bool,
        keeps_model: bool,
        fold_curves: bool,
        max_points: int | None,
        log_datasets: bool,
    ) -> None:
        self.run = run
        self.is_own = is_own
        self.keeps_model = keeps_model
        self._model = weakref.ref(env.model)
        self._kept_model = env.model if keeps_model else None
        estimator, X = fitting(engine)
        self._estimator = estimator if keeps_model else None
        self._is_cv = is_cv(env.model)
        self.curves = Curves(run, env, max_points)
        self.status: str | None = None
        self._pid = os.getpid()
        self._last = env.end_iteration - 1
        self._has_reached_last = False
        self._has_fold_curves = fold_curves and self._is_cv
        self._feval, objective = (
            None if engine is None else engine.f_locals.get(name) for name in ("feval", "fobj")
        )
        self.ending = Ending(env.model, engine, self._on_end)
        _live.add(self)
        header = ""
        # Fails if there are categories that a model's text cannot contain, such as intervals.
        with never_raising("the params that LightGBM used"):
            header = header_of(env.model)
        self.used = used_in(header)
        with never_raising("the params of LightGBM"):
            custom = {} if objective is None else {"objective": name_of(objective)}
            used = {**self.used, **custom}
            params = params_of({**env.params, **custom}, used)
            # In a trial's run, LightGBM's defaults could conflict with the trial's params.
            run.log_params({**used, **params} if is_own else params)
        if log_datasets:
            with never_raising("the data sets of LightGBM"):
                names, infos = features_in(header)
                for data, context in data_of(env.model, names or names_of(env.model), infos):
                    run.log_input(data, context)
        self.trained_on: Any = None
        with never_raising("rows of LightGBM's training data"):
            # Without an estimator, LightGBM has freed the raw data, unless it was asked to keep it.
            if X is None and not self._is_cv:
                train_set: Any = env.model.train_set
                X = train_set.data
            self.trained_on = first_rows(X)

    @property
    def model(self) -> Any:
        """The Booster or CVBooster; None if it was not kept and no longer exists."""
        return self._model() if self._kept_model is None else self._kept_model

    @property
    def estimator(self) -> Any:
        """The fitted estimator that has the model; None if it was not kept, or there is none."""
        estimator = self._estimator
        is_its = estimator is not None and getattr(estimator, "booster_", None) is self.model
        return estimator if is_its else None

    def log_usual(self, env: CallbackEnv) -> bool:
        """Log an iteration if it is like the one before, in less time; return whether it was."""
        return self._model() is env.model and self.curves.log_usual(env)

    def log(self, env: CallbackEnv) -> None:
        """Log an iteration."""
        self.curves.log(env, self._fold_values(env) if self._has_fold_curves else ())
        self._has_reached_last = env.iteration == self._last
        if self._has_reached_last and not self.ending.is_watched and not self.keeps_model:
            self.end("FINISHED")

    def end(self, status: str | None = None) -> None:
        """Log what is known only at the end, and end the run if the model is not kept.

        Args:
            status: FINISHED, FAILED or KILLED. Default: how training ended.
        """
        if self.status is not None or self._pid != os.getpid():
            return  # a forked process also has its parent's training runs
        self.ending.end()
        self.status = status or self._outcome()
        _live.discard(self)
        self.curves.log_end(self.ending.best_iteration)
        if not self.keeps_model:
            self.finish()

    def finish(self, status: str | None = None) -> None:
        """Release the model, and end the run unless it was given to the callback.

        Args:
            status: FINISHED, FAILED or KILLED. Default: the status found by ``end``.
        """
        self.keeps_model, self._kept_model, self._estimator = False, None, None
        self.status = status or self.status
        if self.is_own:
            self.run.finish(str(self.status), end_time=self.ending.time_ms)

    def _on_end(self) -> None:
        with never_raising("the end of LightGBM training"):
            self.end()

    def _fold_values(self, env: Any) -> Iterator[tuple[str, str, int, float]]:
        """Evaluate each fold again, because LightGBM passes only their mean to callbacks."""
        for number, booster in enumerate(env.model.boosters):
            for item in booster.eval_valid(self._feval):
                yield item[0], item[1], number, item[2]

    def _outcome(self) -> str:
        ending = self.ending
        # ``lgb.cv`` does nothing after the callbacks of its last iteration.
        has_returned = ending.has_returned or (self._has_reached_last and self._is_cv)
        status = ending.status_by_callback or ("FINISHED" if has_returned else None)
        return status or ("KILLED" if ending.is_pruned else "FAILED")


_live: set[Training] = set()


def _end_all(_: Deadline) -> None:
    for training in list(_live):
        training.keeps_model = False
        training._on_end()


end_at_exit.append(_end_all)
