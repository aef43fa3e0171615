"""The metrics of a training run: curves, their best values, and changes of params."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..delivery.clock import now_ms
from ..delivery.names import original_names
from ..delivery.plain_values import as_number, start_of_text
from ..delivery.run import IAPRun, LogRow
from ..outbox.records import doubles
from .boosters import is_cv
from .changing_params import ChangingParams
from .prefixed_run import PrefixedRun, row_logger_of
from .thinning import Thinning

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

_logger = logging.getLogger("mlflow_iap_callbacks")

# Types of the values of usual evaluations.
_FLOATS = {float, np.float64}
# Parts of an evaluation.
_SET, _METRIC, _VALUE, _IS_HIGHER = map(itemgetter, range(4))

_SECONDS = "seconds_per_iteration"
_MOST_SAMPLES = 1000  # iterations in a plot
_MOST_UNCOMPARED = 1000  # iterations
_MOST_SHOWN = 80  # characters of a value in a warning


class _Row(NamedTuple):
    """The metrics of one iteration. As bytes, the values take a fifth of the memory."""

    step: int
    time_ms: int
    names: list[str]
    packed: bytes

    def values(self) -> dict[str, float]:
        numbers = doubles(len(self.names)).unpack(self.packed)
        return dict(zip(self.names, numbers, strict=True))


class _Usual(NamedTuple):
    """What is evaluated at nearly each iteration, and functions that pack and log a row."""

    sets: list[str]
    metrics: list[str]
    are_higher_better: list[bool]
    names: list[str]
    pack: Callable[..., bytes]
    log: LogRow


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
        self._points: Thinning[_Row] = Thinning(rounds, most)
        self._params = ChangingParams(env, now_ms(), most)
        self._names: dict[tuple[str, ...], str] = {}
        self._parts: dict[str, tuple[str, ...]] = {}
        self._usual: _Usual | None = None
        self._is_higher_better: dict[str, bool] = {}
        self._best: dict[str, tuple[float, _Row]] = {}
        # Compared many at once: after each iteration, the code would be read from memory again.
        self._uncompared: deque[_Row] = deque()
        self._warned: set[str] = set()  # metrics
        self.last = env.iteration
        self._samples: dict[int, _Row] = {}  # by step
        self._sample_stride = 1
        self._ended_at: float | None = None

    def log(self, env: CallbackEnv, folds: Iterable[tuple[str, str, int, float]]) -> None:
        """Log an iteration.

        Args:
            env: the iteration.
            folds: data set, metric, number and value of each fold of a cross-validation.
        """
        now, time_ms, step = time.perf_counter(), now_ms(), env.iteration
        items, usual = env.evaluation_result_list or (), self._usual
        seconds = None if self._ended_at is None else now - self._ended_at
        numbers = None if usual is None else _numbers(items, usual)
        if usual is None or numbers is None or seconds is None:
            row = self._row(items, folds, step, time_ms, seconds)
        else:
            row = _Row(step, time_ms, usual.names, usual.pack(*numbers, seconds))
        self._ended_at = now
        self._add(row)
        if self._points.is_next(row) and row.names:
            self._run.log_metrics(row.values(), step=step, timestamp=time_ms)
        if self._params.are_changed(env.params):
            self._log(self._params.changes(env.params, step, time_ms))

    def log_usual(self, env: CallbackEnv) -> bool:
        """Log an iteration if it is like the one before, in less time than ``log``.

        Training fills the processor's caches. Then each call of a function takes up to a
        microsecond, so there are few of them.

        Returns:
            Whether it was logged.
        """
        usual, before, step = self._usual, self._ended_at, env.iteration
        is_at_edge = step in (env.begin_iteration, env.end_iteration - 1)
        if usual is None or before is None or is_at_edge or not self._points.are_all_logged:
            return False
        if self._params.are_changed(env.params):
            return False
        numbers = _numbers(env.evaluation_result_list or (), usual)
        if numbers is None:
            return False
        now, time_ms = time.perf_counter(), now_ms()
        packed = usual.pack(*numbers, now - before)
        self._ended_at = now
        self._add(_Row(step, time_ms, usual.names, packed))
        usual.log(step, time_ms, packed)
        return True

    def log_end(self, best_iteration: int) -> None:
        """Log the best and last points that were not logged, and the best values as metrics.

        Args:
            best_iteration: LightGBM's ``best_iteration``; 0 for none.
        """
        self._usual = None
        self._log(self._params.rest())
        self._compare()
        late = {row.step: (row.time_ms, row.values()) for row in self._points.rest()}
        # The best points too, with standard deviation and folds.
        for name, (_, row) in self._best.items():
            if not self._points.is_logged(row.step - self._first):
                kept = late.setdefault(row.step, (row.time_ms, {}))[1]
                its = self._parts[name]
                for other, value in row.values().items():
                    if self._parts.get(other, ())[: len(its)] == its:
                        kept[other] = value
        self._log((step, time_ms, values) for step, (time_ms, values) in sorted(late.items()))
        for name, (value, row) in self._best.items():
            best = self._name("best", *self._parts[name])
            self._run.log_metrics({best: value}, step=row.step, timestamp=row.time_ms)
        numbers = {"stopped_iteration": self.last + 1}
        if best_iteration > 0:
            numbers["best_iteration"] = best_iteration
        self._run.log_metrics(numbers, step=self.last)

    def bests(self) -> dict[str, tuple[float, int]]:
        """The best value of each metric, and its step."""
        return {name: (value, row.step) for name, (value, row) in self._bests()[0].items()}

    def samples(self) -> list[tuple[int, dict[tuple[str, ...], float]]]:
        """Steps for a plot, up to 1,000, with their values by data set and metric."""
        self._compare()
        sets = {name: parts for name, parts in self._parts.items() if len(parts) == 2}
        return [
            (row.step, {sets[name]: value for name, value in row.values().items() if name in sets})
            for row in self._samples.values()
        ]

    def _row(
        self,
        items: Sequence[Any],
        folds: Iterable[tuple[str, str, int, float]],
        step: int,
        time_ms: int,
        seconds: float | None,
    ) -> _Row:
        """Return the metrics of an iteration, and let later ones like it take less time."""
        values = self._values(items, step)
        self._usual = self._usual_of(items, [*values])
        for data, metric, number, value in folds:
            self._add_value(values, self._name(data, metric, f"fold{number}"), value, step)
        if seconds is not None:
            values[_SECONDS] = seconds
        return _Row(step, time_ms, [*values], doubles(len(values)).pack(*values.values()))

    def _usual_of(self, items: Sequence[Any], names: Sequence[str]) -> _Usual | None:
        if self._is_cv or not 0 < len(names) == len(items):
            return None
        names = [*names, _SECONDS]
        log = row_logger_of(self._run, names)
        if log is None:
            return None
        sets, metrics, higher = ([*map(part, items)] for part in (_SET, _METRIC, _IS_HIGHER))
        return _Usual(sets, metrics, higher, names, doubles(len(names)).pack, log)

    def _values(self, items: Sequence[Any], step: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for item in items:
            # (set, metric, mean, is higher better), and stdv for cv, which up to LightGBM 4.5 has
            # ("cv_agg", "set metric", ...).
            data, metric, value = item[0], item[1], item[2]
            if self._is_cv and data == "cv_agg":
                data, _, metric = metric.partition(" ")
            name = self._name(data, metric)
            if name in values:  # two sets with the same name
                name = self._name(data, metric, f"{len(values)}")
            if not self._add_value(values, name, value, step):
                continue
            if name not in self._is_higher_better or self._is_higher_better[name] != item[3]:
                self._compare()
                self._is_higher_better[name] = item[3]
            if self._is_cv and item[4] is not None:
                values[self._name(data, metric, "stdv")] = float(item[4])
        return values

    def _add_value(self, values: dict[str, Any], name: str, value: Any, step: int) -> bool:
        """Add a value; return False, with a warning, if it is not a number."""
        try:
            values[name] = as_number(value)
        except Exception:  # noqa: BLE001 - a custom metric may return anything
            self._warn_of(name, value, step)
            return False
        return True

    def _add(self, row: _Row) -> None:
        self.last = row.step
        self._uncompared.append(row)
        if len(self._uncompared) > _MOST_UNCOMPARED:
            self._compare()

    def _compare(self) -> None:
        """Take samples, and find the best values so far.

        A signal handler or an exception may interrupt this.
        """
        self._best, rows = self._bests()
        for row in rows:
            if (row.step - self._first) % self._sample_stride == 0:
                self._sample(row)
            if self._uncompared and self._uncompared[0] is row:
                self._uncompared.popleft()

    def _bests(self) -> tuple[dict[str, tuple[float, _Row]], Sequence[_Row]]:
        """Return the best values so far, and the rows that they were compared with just now."""
        rows = [*self._uncompared]  # before the best values, because another thread may compare
        bests = dict(self._best)
        for names, some in groupby(rows, attrgetter("names")):
            self._compare_rows(bests, names, [*some])
        return bests, rows

    def _compare_rows(
        self, bests: dict[str, tuple[float, _Row]], names: Sequence[str], rows: Sequence[_Row]
    ) -> None:
        numbers = np.frombuffer(b"".join(row.packed for row in rows), "<f8")
        for name, values in zip(names, numbers.reshape(len(rows), -1).T, strict=True):
            known = np.flatnonzero(~np.isnan(values))
            if name not in self._is_higher_better or not known.size:
                continue
            is_higher_better = self._is_higher_better[name]
            at = known[values[known].argmax() if is_higher_better else values[known].argmin()]
            value, best = float(values[at]), bests.get(name)
            if best is None or (value > best[0] if is_higher_better else value < best[0]):
                bests[name] = (value, rows[at])

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

    def _sample(self, row: _Row) -> None:
        self._samples[row.step] = row
        if len(self._samples) > _MOST_SAMPLES:
            self._sample_stride *= 2
            self._samples = dict([*self._samples.items()][::2])

    def _log(self, points: Iterable[tuple[int, int, Mapping[str, float]]]) -> None:
        for step, time_ms, values in points:
            if values:
                self._run.log_metrics(values, step=step, timestamp=time_ms)


def _numbers(items: Sequence[Any], usual: _Usual) -> list[float] | None:
    """Return the values of an iteration's evaluations; None if they are not the usual ones."""
    # LightGBM 4.7's evaluations compute their length and iterate in Python.
    if (
        usual.metrics == [*map(_METRIC, items)]
        and usual.sets == [*map(_SET, items)]
        and usual.are_higher_better == [*map(_IS_HIGHER, items)]
    ):
        numbers = [*map(_VALUE, items)]
        return numbers if _FLOATS.issuperset(map(type, numbers)) else None
    return None
