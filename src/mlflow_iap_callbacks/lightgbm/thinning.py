"""Chooses the points of a long curve that are logged, without knowing where it will end."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

_Point = TypeVar("_Point")


class Thinning(Generic[_Point]):
    """Chooses at most ``most`` points of a curve.

    Half of them are logged while the curve grows: evenly, and densely at its beginning, because
    early stopping may end it there. The other half fills the gaps at the end.

    Args:
        longest: number of points if the curve does not end early.
        most: at least 1; None for no limit.
    """

    def __init__(self, longest: int, most: int | None) -> None:
        self._room = longest if most is None else most
        self._at_once: set[int] | None = None
        if longest > self._room:
            at_once = max(1, self._room // 2)
            dense = np.geomspace(1, longest, at_once // 2 + 1) - 1
            even = np.arange((at_once - 1) // 2) * longest / max(1, (at_once - 1) // 2)
            self._at_once = {int(position) for position in (*dense, *even)}
        self._position = 0
        self._kept: dict[int, _Point] = {}  # by position, for the gaps
        self._stride = 1
        self._last: _Point | None = None

    @property
    def are_all_logged(self) -> bool:
        """Whether each point is logged while the curve grows."""
        return self._at_once is None

    def is_next(self, point: _Point) -> bool:
        """Whether to log the next point of the curve now."""
        position = self._position
        self._position += 1
        if self.is_logged(position):
            self._room -= 1
            self._last = None
            return True
        self._last = point
        if position % self._stride == 0:
            self._kept[position] = point
            if len(self._kept) > 2 * self._room:
                self._stride *= 2
                self._kept = {
                    at: point for at, point in self._kept.items() if at % self._stride == 0
                }
        return False

    def is_logged(self, position: int) -> bool:
        """Whether the point at this position was logged while the curve grew."""
        return self._at_once is None or position in self._at_once

    def rest(self) -> list[_Point]:
        """The points to log when the curve has ended, including the curve's last point."""
        points = list(self._kept.values())
        if len(points) > self._room:
            chosen = np.linspace(0, len(points) - 1, max(0, self._room)).astype(int)
            points = [points[at] for at in chosen]
        if self._last is not None and not (points and points[-1] is self._last):
            points.append(self._last)
        self._kept, self._last = {}, None
        return points
