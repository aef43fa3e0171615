"""The metrics of a training run: curves, their best values, and changes of params."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..delivery.clock import now_ms
from ..delivery.names import original_names
from ..delivery.plain_values import as_number, start_of_text
from ..delivery.run import IAPRun
from .boosters import is_cv
from .changing_params import ChangingParams
from .prefixed_run import PrefixedRun
from .repeated_metrics import RepeatedMetrics
from .thinning import Thinning

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

_logger = logging.getLogger("mlflow_iap_callbacks")

# Data set, metric, value, whether higher is better. LightGBM's evaluations iterate in Python.
_FIELDS = itemgetter(0, 1, 2, 3)
_SECONDS = "seconds_per_iteration"
_MOST_SAMPLES = 1000  # iterations in a plot
_MOST_SHOWN = 80  # characters of a value in a warning


class _Iteration(NamedTuple):
    step: int
    time_ms: int
    values: Mapping[str, Any]


class Curves:
    """Logs the curves of one training run, and keeps their best and last points.

    ``env`` is the first iteration. ``max_points``, at least 3, limits each curve; None for no
    limit.
    """

    def __init__(self, run: IAPRun | PrefixedRun, env: CallbackEnv, max_points: int | None) -> None:
        self._run = run
        self._first = env.iteration
        self._is_cv = is_cv(env.model)
        # Two points of each curve are reserved for the best and the last.
        most = None if max_points is None else max_points - 2
        rounds = env.end_iteration - env.begin_iteration
        self._points: Thinning[tuple[int, int, Mapping[str, Any]]] = Thinning(rounds, most)
        self._params = ChangingParams(env, now_ms(), most)
        self._names: dict[tuple[str, ...], str] = {}
        self._parts: dict[str, tuple[str, ...]] = {}
        self._repeated: RepeatedMetrics | None = None
        self._best: dict[str, _Iteration] = {}
        self._warned: set[str] = set()  # metrics
        self.last = env.iteration
        self._samples: list[tuple[int, Mapping[str, Any]]] = []
        self._sample_stride = 1
        self._ended_at: float | None = None

    def log(self, env: CallbackEnv, folds: Iterable[tuple[str, str, int, float]]) -> None:
        """Log an iteration.

        Args:
            env: the iteration.
            folds: data set, metric, number and value of each fold of a cross-validation.
        """
        now, time_ms, step = time.perf_counter(), now_ms(), env.iteration
        values = self._values(env.evaluation_result_list or (), step, time_ms)
        for data, metric, number, value in folds:
            values[self._name(data, metric, f"fold{number}")] = value
        if (step - self._first) % self._sample_stride == 0:
            self._sample(step, values)
        if self._ended_at is not None:
            values[_SECONDS] = now - self._ended_at
        self._ended_at = now
        self.last = step
        if self._points.is_next((step, time_ms, values)) and values:
            self._run.log_metrics(values, step=step, timestamp=time_ms)
        self._log(self._params.changes(env.params, step, time_ms))

    def log_end(self, best_iteration: int) -> None:
        """Log the best and last points that were not logged, and the best values as metrics.

        Args:
            best_iteration: LightGBM's ``best_iteration``; 0 for none.
        """
        self._log(self._params.rest())
        late = {step: (time_ms, dict(values)) for step, time_ms, values in self._points.rest()}
        # The best points too, with standard deviation and folds.
        for name, best in self._best.items():
            if not self._points.is_logged(best.step - self._first):
                kept = late.setdefault(best.step, (best.time_ms, {}))[1]
                its = self._parts[name]
                for other, value in best.values.items():
                    if self._parts.get(other, ())[: len(its)] == its:
                        kept[other] = value
        self._log((step, time_ms, values) for step, (time_ms, values) in sorted(late.items()))
        for name, best in self._best.items():
            value = {self._name("best", *self._parts[name]): best.values[name]}
            self._run.log_metrics(value, step=best.step, timestamp=best.time_ms)
        numbers = {"stopped_iteration": self.last + 1}
        if best_iteration > 0:
            numbers["best_iteration"] = best_iteration
        self._run.log_metrics(numbers, step=self.last)

    def bests(self) -> dict[str, tuple[float, int]]:
        """The best value of each metric, and its step."""
        return {name: (best.values[name], best.step) for name, best in self._best.items()}

    def samples(self) -> list[tuple[int, dict[tuple[str, ...], float]]]:
        """Steps for a plot, up to 1,000, with their values by data set and metric."""
        sets = {name: parts for name, parts in self._parts.items() if len(parts) == 2}
        return [
            (step, {sets[name]: value for name, value in values.items() if name in sets})
            for step, values in self._samples
        ]

    def _values(self, items: Sequence[Any], step: int, time_ms: int) -> dict[str, Any]:
        """Return the values of an iteration by metric, and note which of them are the best."""
        columns = [*zip(*map(_FIELDS, items), strict=True)]
        if self._repeated is not None:
            values = self._repeated.values(columns)
            if values is not None:
                improved = self._repeated.improved(values)
                self._best |= dict.fromkeys(improved, _Iteration(step, time_ms, values))
                return values
        values = self._other_values(items, step, time_ms)
        self._repeated = None
        is_plain = not self._is_cv and 0 < len(values) == len(items)
        if is_plain and values.keys() <= self._best.keys():
            best = [self._best[name].values[name] for name in values]
            self._repeated = RepeatedMetrics(columns, [*values], best)
        return values

    def _other_values(self, items: Sequence[Any], step: int, time_ms: int) -> dict[str, Any]:
        """As ``_values``, for any metrics and values."""
        values: dict[str, Any] = {}
        iteration = _Iteration(step, time_ms, values)
        for item in items:
            # (set, metric, mean, is higher better), and stdv for cv, which up to LightGBM 4.5 has
            # ("cv_agg", "set metric", ...).
            data, metric, value, is_higher_better = _FIELDS(item)
            if self._is_cv and data == "cv_agg":
                data, _, metric = metric.partition(" ")
            name = self._name(data, metric)
            if name in values:  # two sets with the same name
                name = self._name(data, metric, f"{len(values)}")
            try:
                number = as_number(value)
            except Exception:  # noqa: BLE001 - a custom metric may return anything
                self._warn_of(name, value, step)
                continue
            values[name] = number
            best = self._best[name].values[name] if name in self._best else math.nan
            # A best value of NaN stands for none.
            is_better = not (number <= best if is_higher_better else number >= best)
            if is_better and not math.isnan(number):
                self._best[name] = iteration
            if self._is_cv and item[4] is not None:
                values[self._name(data, metric, "stdv")] = float(item[4])
        return values

    def _warn_of(self, name: str, value: object, step: int) -> None:
        if name not in self._warned:
            self._warned.add(name)
            _logger.warning(
                "Metric %r is %s at step %d. Values that are not numbers are not logged: let the "
                "custom metric return a float.",
                name,
                start_of_text(value, _MOST_SHOWN),
                step,
            )

    def _name(self, *parts: str) -> str:
        """``SET-METRIC`` as in MLflow's autolog, with a suffix if that name is taken."""
        name = self._names.get(parts)
        if name is None:
            name = "-".join(map(str, parts))
            if name in self._parts:
                mark = hashlib.sha256(repr(parts).encode(errors="replace")).hexdigest()[:6]
                self._run.set_tags(original_names({", ".join(map(str, parts)): f"{name}-{mark}"}))
                name = f"{name}-{mark}"
            self._names[parts] = name
            self._parts[name] = tuple(map(str, parts))
        return name

    def _sample(self, step: int, values: Mapping[str, Any]) -> None:
        self._samples.append((step, values))
        if len(self._samples) > _MOST_SAMPLES:
            del self._samples[1::2]
            self._sample_stride *= 2

    def _log(self, points: Iterable[tuple[int, int, Mapping[str, float]]]) -> None:
        for step, time_ms, values in points:
            if values:
                self._run.log_metrics(values, step=step, timestamp=time_ms)
