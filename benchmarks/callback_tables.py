"""Summarizes measurements of callbacks in tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench import Measurement
from cases import LONGEST, in_pairs
from delays import DOWN, delay_label
from tables import Table, short


@dataclass(frozen=True)
class Summary:
    """The rounds of a contender with a delay, each with the round without a callback."""

    name: str
    delay: float
    rounds: Sequence[Measurement]
    none: Sequence[Measurement]

    def median(self, of: Callable[[Measurement], float]) -> float:
        return float(median(map(of, self.rounds)))

    def ratio(self, of: Callable[[Measurement], float]) -> float:
        """Return the median of the ratios to training without a callback."""
        pairs = zip(self.rounds, self.none, strict=False)  # other integrations have one round
        return float(median(of(m) / none.train for m, none in pairs))

    def blocked_ms(self, share: float) -> float | None:
        """Return a quantile over the events of all rounds, or None if there are none."""
        events = sorted(event for m in self.rounds for event in m.events)
        return events[round(share * (len(events) - 1))] * 1000 if events else None


def summaries(measurements: Iterable[Measurement], case: str) -> list[Summary]:
    """Summarize a case, in the order of its first round."""
    groups: dict[tuple[str, float], list[Measurement]] = {}
    for m in measurements:
        if m.case == case:
            groups.setdefault((m.name, m.delay), []).append(m)
    return [Summary(*key, rounds, groups["none", key[1]]) for key, rounds in groups.items()]


def case_table(title: str, rows: Iterable[Summary]) -> Table:
    heads = ["delay", "contender", "training s", "delivered s", "blocked ms", "requests"]
    heads += ["CPU s", "peak MB", "points"]
    return Table(title, heads, [_cells(row) for row in rows])


def _cells(row: Summary) -> list[str]:
    blocked, rarely = row.blocked_ms(0.5), row.blocked_ms(0.99)
    return [
        delay_label(row.delay),
        row.name,
        f"{row.median(lambda m: m.train):.2f} ({row.ratio(lambda m: m.train):.2f}x)",
        f"{row.median(lambda m: m.total):.2f} ({row.ratio(lambda m: m.total):.2f}x)",
        "-" if blocked is None or rarely is None else f"{short(blocked)}, {short(rarely)}",
        f"{row.median(lambda m: m.requests):.0f}",
        f"{row.median(lambda m: m.cpu):.2f}",
        f"{row.median(lambda m: m.peak_mb):.0f}",
        f"{min(m.points for m in row.rounds):,}",
    ]


_CALLED = {
    ("Optuna", "ours"): "**{size} Optuna trials** of 0.1 s, `IAPMLflowCallback`",
    ("Optuna", "optuna_integration"): "`optuna_integration.MLflowCallback`",
    ("8 at once", "ours"): "**{size} Optuna trials** of 1 s, 8 at once",
    ("8 at once", "ours, track_in_mlflow"): "the same with `track_in_mlflow`",
    ("8 at once", "optuna_integration"): "`optuna_integration.MLflowCallback`",
    ("8 at once", "the same, track_in_mlflow"): "the same with `track_in_mlflow`",
    ("LightGBM", "ours"): "**{size} LightGBM rounds**, 2 sets, 2 metrics, `IAPLightGBMCallback`",
    ("LightGBM", "autolog"): "`mlflow.lightgbm.autolog`, without the model",
    ("LightGBM", "log_metric"): "a callback with `client.log_metric`",
    ("LightGBM", "log_metric, async"): "the same with `synchronous=False`",
}


def headline_table(
    cases: Mapping[str, Iterable[Summary]], sizes: Mapping[str, int], delay: float
) -> Table:
    """Return the table of all cases with one delay, for the documentation."""
    found = {(case, row.name): row for case in cases for row in cases[case] if row.delay == delay}
    rows = []
    for place, called in _CALLED.items():
        row = found[place]
        blocked = row.blocked_ms(0.5)
        cells = [
            f"{row.ratio(lambda m: m.train):.2f} times",
            "" if blocked is None else f"{short(blocked)} ms",
            f"{row.median(lambda m: m.requests):.0f}",
        ]
        rows.append([called.format(size=sizes[place[0]]), *cells])
    heads = ["", "training takes", "blocked per event, median", "requests"]
    return Table("", heads, rows, names=1)


def growth_table(rows: Iterable[Summary]) -> Table:
    """Return the table of what a call of the callback costs at both ends of a long sweep."""
    heads = ["contender", "delay", "first tenth, blocked ms", "last tenth"]
    table = []
    for row in rows:
        tenths = [m.events[: len(m.events) // 10] for m in row.rounds if m.events]
        lasts = [m.events[-len(m.events) // 10 :] for m in row.rounds if m.events]
        if tenths:
            cells = [short(median(sum(part, ())) * 1000) for part in (tenths, lasts)]
            table.append([row.name, delay_label(row.delay), *cells])
    return Table("Cost of one trial as a sweep grows", heads, table)


def _pairs(measurements: Iterable[Measurement]) -> dict[tuple[str, float], list[float]]:
    """Return how many times longer training takes with the callback, by case and delay."""
    groups: dict[tuple[str, float], list[float]] = {}
    for case in ("Optuna", "LightGBM", LONGEST):
        for m in measurements:
            if m.case == in_pairs(case):
                groups.setdefault((case, m.delay), []).extend(m.events)
    return groups


def pairs_table(measurements: Sequence[Measurement]) -> Table:
    heads = ["training", "delay", "pairs", "10 %", "median", "90 %"]
    rows = []
    for (case, delay), ratios in _pairs(measurements).items():
        tenths = quantiles(ratios, n=10)
        cells = [f"{ratio:.3f}" for ratio in (tenths[0], median(ratios), tenths[-1])]
        rows.append([case, delay_label(delay), str(len(ratios)), *cells])
    return Table("Training time relative to training without the callback", heads, rows)


def sentences(measurements: Sequence[Measurement]) -> str:
    """Return a list of what else was measured, for the documentation."""
    pairs = _pairs(measurements)
    lines = []
    down = {case: pairs[case, DOWN] for case in ("Optuna", "LightGBM")}
    times = " and ".join(f"{median(ratios):.3f} times ({case})" for case, ratios in down.items())
    lines.append(
        f"With the server down throughout, training takes {times} as long as without a callback "
        f"(medians of {len(down['Optuna'])} pairs of shorter runs)."
    )
    longest = [ratios for (case, _), ratios in pairs.items() if case == LONGEST]
    if longest:
        medians = sorted(map(median, longest))
        lines.append(
            f"A training of {LONGEST} of less than a millisecond, each with 12 metrics, takes "
            f"{medians[0]:.2f} to {medians[-1]:.2f} times as long (medians of {len(longest[0])} "
            "pairs at each delay): delivery takes processor time from it, and the server "
            "takes the same processors."
        )
    speeds = [median(ratios) for ratios in _throughput_ratios(measurements).values()]
    lines.append(
        f"Many points of one run are delivered at {min(speeds):.0%} of the speed of a simple loop "
        "of full `log_batch` calls."
    )
    return "\n".join(f"- {line}" for line in lines)


def _throughput(measurements: Iterable[Measurement]) -> dict[float, dict[str, list[Measurement]]]:
    groups: dict[float, dict[str, list[Measurement]]] = {}
    for m in measurements:
        if m.case == "throughput":
            groups.setdefault(m.delay, {}).setdefault(m.name, []).append(m)
    return groups


def _throughput_ratios(measurements: Iterable[Measurement]) -> dict[float, list[float]]:
    """Return the speed relative to the loop's, in each round, by delay."""
    return {
        delay: [
            loop.total / ours.total
            for ours, loop in zip(found["ours"], found["log_batch"], strict=True)
        ]
        for delay, found in _throughput(measurements).items()
    }


def throughput_table(title: str, measurements: Sequence[Measurement]) -> Table:
    heads = ["delay", "pairs", "ours /s", "log_batch /s", "ratios", "median", "append s", "drain s"]
    heads += ["requests"]
    rows: list[list[str]] = []
    all_ratios = _throughput_ratios(measurements)
    for delay, contenders in _throughput(measurements).items():
        ours, bare = contenders["ours"], contenders["log_batch"]
        ratios = all_ratios[delay]
        rates = [f"{median(m.points / m.total for m in of):,.0f}" for of in (ours, bare)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        took = [f"{median(m.train for m in ours):.2f}", f"{median(m.deliver for m in ours):.2f}"]
        requests = ", ".join(f"{median(m.requests for m in of):.0f}" for of in (ours, bare))
        cells = [*rates, each, f"{median(ratios):.2f}", *took, requests]
        rows.append([delay_label(delay), str(len(ours)), *cells])
    return Table(title, heads, rows)
