"""Curves of the params that change during training, as with ``lgb.reset_parameter``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .params import canonical_name, value_of
from .thinning import Thinning

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

_MISSING = object()

_Point = tuple[int, int, dict[str, float]]  # step, time in milliseconds, value by param


class ChangingParams:
    """Finds the changes of params; one that never changes has no curve.

    Args:
        env: the first iteration.
        time_ms: its time.
        most: maximum number of points per curve; None for no limit.
    """

    def __init__(self, env: CallbackEnv, time_ms: int, most: int | None) -> None:
        self._given = dict(env.params)
        self._first = (env.iteration, time_ms)
        self._rounds = env.end_iteration - env.begin_iteration
        self._most = most
        self._curves: dict[str, Thinning[_Point]] = {}

    def are_changed(self, params: Mapping[str, Any]) -> bool:
        """Return whether an iteration with these params may have changed them."""
        try:
            return params != self._given
        except Exception:  # noqa: BLE001 - an array has no truth value
            return True

    def changes(self, params: Mapping[str, Any], step: int, time_ms: int) -> Iterator[_Point]:
        """Return the points to log at an iteration with these params."""
        changed = [
            (name, value)
            for name, value in params.items()
            if value is not self._given.get(name, _MISSING)
        ]
        for given, value in changed:
            name = canonical_name(given)
            before = _number(value_of(self._given, name))
            self._given[given] = value
            number = _number(value)
            if number is None or number == before:
                continue
            curve = self._curves.get(name)
            if curve is None:
                curve = self._curves[name] = Thinning(self._rounds, self._most)
                if before is not None:
                    curve.is_next(point := (*self._first, {name: before}))
                    yield point
            if curve.is_next(point := (step, time_ms, {name: number})):
                yield point

    def rest(self) -> Iterator[_Point]:
        """Return the points to log when training has ended."""
        for curve in self._curves.values():
            yield from curve.rest()


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return None
