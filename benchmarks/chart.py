"""Draws what a callback costs, by the server's delay, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from callback_tables import Summary
from delays import delay_label
from matplotlib.axes import Axes
from tables import short

_COLORS = {
    "ours": "#0b6e4f",
    "optuna_integration": "#d1495b",
    "autolog": "#edae49",
    "log_metric": "#d1495b",
    "log_metric, async": "#66829c",
}
_LEGEND: Any = {"columnspacing": 1.2, "handlelength": 1.2, "fontsize": 8}
_STYLE: Any = {
    "svg.hashsalt": "0",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(cases: Mapping[str, Sequence[Summary]], path: Path) -> None:
    """Draw a column for each case: time blocked above, time until delivered below."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(2, len(cases), figsize=(11, 6.8), squeeze=False)
        for (case, all_rows), (above, below) in zip(cases.items(), axes.T, strict=True):
            rows = [row for row in all_rows if row.name != "none"]
            seen = [row for row in rows if row.blocked_ms(0.5) is not None]
            _bars(above, seen, lambda row: row.blocked_ms(0.5) or 0.0, "")
            above.set_title(f"{case}: ms blocked per event, median", loc="left", weight="bold")
            _bars(below, rows, lambda row: row.ratio(lambda m: m.total), "x")
            below.set_title(
                f"{case}: time until delivered, x no callback", loc="left", weight="bold"
            )
            below.axhline(1, color="black", linewidth=0.8)
            below.set_ylim(bottom=0.8)
            below.set_xlabel("added to each request")
            below.legend(
                frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=4, **_LEGEND
            )
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _bars(
    axes: Axes, rows: Sequence[Summary], value: Callable[[Summary], float], unit: str
) -> None:
    delays = list(dict.fromkeys(row.delay for row in rows))
    width = 0.85 / len({row.name for row in rows})
    for place, delay in enumerate(delays):
        group = [row for row in rows if row.delay == delay]
        for number, row in enumerate(group):
            bar = axes.bar(
                place + (number - (len(group) - 1) / 2) * width,
                value(row),
                width * 0.92,
                label=row.name if place == 0 else None,
                color=_COLORS[row.name],
            )
            axes.bar_label(bar, [f"{short(value(row))}{unit}"], padding=2, fontsize=7)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(delays)), [delay_label(delay) for delay in delays])
    axes.grid(axis="y", which="major", alpha=0.25)
    axes.set_axisbelow(True)
