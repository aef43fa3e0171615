"""The metrics that each iteration of a training run repeats: their values, and which are best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from operator import gt, mul
from typing import Any

import numpy as np

_FLOATS = {float, np.float32, np.float64}


class RepeatedMetrics:
    """Reads the evaluations of an iteration that has the same metrics as the one before.

    This is called at each iteration of training, so all work on a single metric is done by
    functions that are written in C.

    Args:
        columns: data sets, metrics, values, and whether a higher value is better, of an iteration.
        names: name of each metric.
        best: the best value of each metric up to and including this iteration; not NaN.
    """

    def __init__(
        self, columns: Sequence[Sequence[Any]], names: Sequence[str], best: Iterable[float]
    ) -> None:
        self._place = _place(columns)
        self._names = names
        self._signs = [1.0 if is_higher_better else -1.0 for is_higher_better in columns[3]]
        self._tops = [*map(mul, self._signs, best)]

    def values(self, columns: Sequence[Sequence[Any]]) -> dict[str, Any] | None:
        """Return values by metric; None if there are other metrics, or values of other types."""
        if _place(columns) != self._place or not _FLOATS.issuperset(map(type, columns[2])):
            return None
        return dict(zip(self._names, map(float, columns[2]), strict=True))

    def improved(self, values: Mapping[str, float]) -> Iterable[str]:
        """Return the names of the metrics that are better than ever before."""
        signed = [*map(mul, self._signs, values.values())]
        is_better = [*map(gt, signed, self._tops)]
        if True not in is_better:
            return ()
        # If the new value is NaN, ``max`` returns its first argument.
        self._tops = [*map(max, self._tops, signed)]
        return compress(self._names, is_better)


def _place(columns: Sequence[Sequence[Any]]) -> tuple[Sequence[Any], ...]:
    return (columns[0], columns[1], columns[3]) if columns else ()
