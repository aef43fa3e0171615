"""The metrics of a training run: curves, their best values, and changes of params."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..delivery.clock import now_ms
from ..delivery.names import original_names
from ..delivery.plain_values import as_number, start_of_text
from ..delivery.run import IAPRun
from .boosters import is_cv
from .changing_params import ChangingParams
from .prefixed_run import PrefixedRun
from .thinning import Thinning

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

_logger = logging.getLogger("mlflow_iap_callbacks")

_SECONDS = "seconds_per_iteration"
_MOST_SAMPLES = 1000  # iterations in a plot
_MOST_SHOWN = 80  # characters of a value in a warning


class _Point(NamedTuple):
    value: float
    step: int
    time_ms: int
    values: Mapping[str, Any]  # all values of the iteration


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
        self._best: dict[str, _Point] = {}
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
        for name, point in self._best.items():
            if not self._points.is_logged(point.step - self._first):
                kept = late.setdefault(point.step, (point.time_ms, {}))[1]
                its = self._parts[name]
                for other, value in point.values.items():
                    if self._parts.get(other, ())[: len(its)] == its:
                        kept[other] = value
        self._log((step, time_ms, values) for step, (time_ms, values) in sorted(late.items()))
        for name, point in self._best.items():
            best = self._name("best", *self._parts[name])
            self._run.log_metrics({best: point.value}, step=point.step, timestamp=point.time_ms)
        numbers = {"stopped_iteration": self.last + 1}
        if best_iteration > 0:
            numbers["best_iteration"] = best_iteration
        self._run.log_metrics(numbers, step=self.last)

    def bests(self) -> dict[str, tuple[float, int]]:
        """The best value of each metric, and its step."""
        return {name: (point.value, point.step) for name, point in self._best.items()}

    def samples(self) -> list[tuple[int, dict[tuple[str, ...], float]]]:
        """Steps for a plot, up to 1,000, with their values by data set and metric."""
        sets = {name: parts for name, parts in self._parts.items() if len(parts) == 2}
        return [
            (step, {sets[name]: value for name, value in values.items() if name in sets})
            for step, values in self._samples
        ]

    def _values(self, items: Sequence[Any], step: int, time_ms: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        names, bests = self._names, self._best
        for item in items:
            # (set, metric, mean, is higher better), and stdv for cv, which up to LightGBM 4.5 has
            # ("cv_agg", "set metric", ...).
            data, metric, value = item[0], item[1], item[2]
            if self._is_cv and data == "cv_agg":
                data, _, metric = metric.partition(" ")
            name = names.get((data, metric)) or self._name(data, metric)
            if name in values:  # two sets with the same name
                name = self._name(data, metric, f"{len(values)}")
            try:
                # NumPy's float64 is a float too. This is called for each metric of each iteration.
                number = float(value) if isinstance(value, float) else as_number(value)
            except Exception:  # noqa: BLE001 - a custom metric may return anything
                self._warn_of(name, value, step)
                continue
            values[name] = number
            best = bests.get(name)
            is_higher_better = item[3]
            if number == number and (  # not NaN
                best is None or (number > best.value if is_higher_better else number < best.value)
            ):
                bests[name] = _Point(number, step, time_ms, values)
            if self._is_cv and item[4] is not None:
                values[names.get((data, metric, "stdv")) or self._name(data, metric, "stdv")] = (
                    float(item[4])
                )
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
