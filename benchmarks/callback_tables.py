"""Summarizes measurements of callbacks in tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench import Measurement
from delays import delay_label
from tables import Table, conditions, short

from mlflow_iap_callbacks.plurals import counted

_NOTE = """\
Medians of {rounds} (other integrations: one), in alternating order, each in a separate \
process and after a warm-up. The server, IAP and training share the machine. In brackets: the \
time relative to training without a callback in the same round. *Delivered* is the time until \
the server has everything, *blocked* the time inside one call of the callback (median and 99th \
percentile; not visible for autolog), *requests* the number that IAP received. *Down* is a \
server that responds with 503 during training and works again afterwards. The other integrations \
do not support IAP, so they use this package's transport (MLFLOW_TRACKING_AUTH=iap). autolog \
also logs the data set and the feature importance."""


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


def pairs_table(measurements: Iterable[Measurement]) -> Table:
    """Return the table of how many times longer training takes with the callback."""
    heads = ["training", "delay", "pairs", "10 %", "median", "90 %"]
    groups: dict[tuple[str, float], list[float]] = {}
    for m in measurements:
        if m.case.endswith(", pairs"):
            groups.setdefault((m.case, m.delay), []).extend(m.events)
    rows = []
    for (case, delay), ratios in groups.items():
        tenths = quantiles(ratios, n=10)
        cells = [f"{ratio:.3f}" for ratio in (tenths[0], median(ratios), tenths[-1])]
        rows.append([case.removesuffix(", pairs"), delay_label(delay), str(len(ratios)), *cells])
    return Table("Training time relative to training without the callback", heads, rows)


def throughput_table(title: str, measurements: Iterable[Measurement]) -> Table:
    heads = ["delay", "pairs", "ours /s", "log_batch /s", "ratios", "median", "append s", "drain s"]
    heads += ["requests"]
    groups: dict[float, dict[str, list[Measurement]]] = {}
    for m in measurements:
        if m.case == "throughput":
            groups.setdefault(m.delay, {}).setdefault(m.name, []).append(m)
    rows: list[list[str]] = []
    for delay, contenders in groups.items():
        ours, bare = contenders["ours"], contenders["log_batch"]
        ratios = [theirs.total / own.total for own, theirs in zip(ours, bare, strict=True)]
        rates = [f"{median(m.points / m.total for m in of):,.0f}" for of in (ours, bare)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        took = [f"{median(m.train for m in ours):.2f}", f"{median(m.deliver for m in ours):.2f}"]
        requests = ", ".join(f"{median(m.requests for m in of):.0f}" for of in (ours, bare))
        cells = [*rates, each, f"{median(ratios):.2f}", *took, requests]
        rows.append([delay_label(delay), str(len(ours)), *cells])
    return Table(title, heads, rows)


def markdown(tables: Iterable[Table], rounds: int) -> str:
    parts = [
        "# What the callbacks cost, compared with others",
        _NOTE.format(rounds=counted(rounds, "round")),
        conditions(("mlflow", "optuna", "optuna-integration", "lightgbm")),
        "![What a callback costs](../docs/images/costs.svg)",
    ]
    for table in tables:
        parts += [f"## {table.title}", table.markdown()]
    return "\n\n".join(parts) + "\n"
