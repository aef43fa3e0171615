"""Compare the callbacks with other integrations, with a real MLflow server behind a local IAP.

    python benchmarks/compare.py            # results.md beside this file, and docs/
    python benchmarks/compare.py --quick    # a quick check with small sizes; writes nothing

Exits with 1 if the server lacks points that were reported as delivered.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import Bench, Measurement
from callback_tables import (
    case_table,
    growth_table,
    headline_table,
    markdown,
    pairs_table,
    summaries,
    throughput_table,
)
from cases import CASES
from delays import DELAYS, DOWN, HEADLINE_DELAY, delay_label
from docs_parts import COMPARISON, IMAGES, put_into
from rich.console import Console
from sweeps import PAIRED_TRIALS
from tables import show, wide_console
from trainings import LONG_PAIRED_ROUNDS, PAIRED_ROUNDS

_LONG_TRAININGS = ("1,000 rounds", "10,000 rounds")


@dataclass(frozen=True)
class Plan:
    """What is measured: the seconds added to each request, and the size of each run."""

    delays: tuple[float, ...] = DELAYS
    trials: int = 20
    boosting_rounds: int = 100
    points: int = 100_000
    pairs: int = 15
    long_trials: int = 2000
    long_rounds: tuple[int, int] = (1_000, 10_000)
    long_pairs: int = 10

    def steps(self, number: int) -> Iterator[tuple[str, str, float]]:
        """Yield case, contender and delay, in the order of a round. The other integrations, which
        take minutes, are only in the first round."""
        for case in ("Optuna", "LightGBM"):
            names = CASES[case] if number == 0 else ("none", "ours")
            for delay in self.delays:
                yield from ((case, name, delay) for name in names)
            yield from ((f"{case}, pairs", "ours", delay) for delay in (*self.delays, DOWN))
            # Without a server, MLflow's own retries block other integrations for minutes.
            yield from ((case, name, DOWN) for name in ("none", "ours"))
        if number == 0:
            for case in ("8 at once", "long"):
                yield from ((case, name, 0.06) for name in CASES[case])
            yield from (("1,000 rounds", name, 0.06) for name in CASES["1,000 rounds"])
            for delay in self.delays:
                yield from (("10,000 rounds", name, delay) for name in CASES["10,000 rounds"])
                if self.long_pairs:
                    yield "10,000 rounds, pairs", "ours", delay
        for delay in self.delays[: 2 if number == 0 else 1]:
            yield from (("throughput", name, delay) for name in CASES["throughput"])

    def size(self, case: str, delay: float) -> int:
        """Return the number of trials, rounds or points of a run."""
        sizes = {"Optuna": self.trials, "LightGBM": self.boosting_rounds, "throughput": self.points}
        sizes |= {"8 at once": 16, "long": self.long_trials}
        sizes["10,000 rounds, pairs"] = self.long_pairs
        sizes |= dict(zip(_LONG_TRAININGS, self.long_rounds, strict=True))
        # Long enough that some requests are sent, and fail, before training ends.
        longer = 4 if (case, delay) == ("LightGBM", DOWN) else 1
        return sizes.get(case, self.pairs) * longer

    def points_of(self, case: str, delay: float) -> int:
        """Return the number of points that the server must have."""
        each = {
            "LightGBM": 4,  # 2 sets, 2 metrics
            **dict.fromkeys(_LONG_TRAININGS, 12),  # 3 sets, 4 metrics
            "Optuna, pairs": PAIRED_TRIALS,
            "LightGBM, pairs": PAIRED_ROUNDS * 4,
            "10,000 rounds, pairs": LONG_PAIRED_ROUNDS * 12,
        }
        return self.size(case, delay) * each.get(case, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one small round, writes nothing")
    arguments = parser.parse_args()
    plan = Plan((0.06,), 3, 10, 4_000, 2, 40, (50, 500), 0) if arguments.quick else Plan()
    rounds = 1 if arguments.quick else arguments.rounds

    # Exit by an exception on SIGTERM, so that the server is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    console = wide_console()
    measurements = _measure(plan, rounds, console)
    cases = ("Optuna", "LightGBM", "8 at once", "long", *_LONG_TRAININGS)
    rows = {case: summaries(measurements, case) for case in cases}
    titles = {
        "Optuna": f"Optuna: {plan.trials} trials, each sleeping for 0.1 s; 8 params",
        "8 at once": "Optuna, n_jobs=8: 16 trials, each sleeping for 1 s",
        "long": f"Optuna: {plan.long_trials} trials, each sleeping for 0.01 s",
        "LightGBM": f"LightGBM: {plan.boosting_rounds} rounds (down: {plan.boosting_rounds * 4}), "
        "2 sets with 2 metrics, 1 thread",
        **{
            case: f"LightGBM: {plan.size(case, 0):,} rounds, 3 sets with 4 metrics, 1 thread"
            for case in _LONG_TRAININGS
        },
    }
    title = f"Throughput: {plan.points:,} points to one run, and a loop of log_batch"
    tables = [
        *(case_table(titles[case], rows[case]) for case in rows),
        growth_table(rows["long"]),
        pairs_table(measurements),
        throughput_table(title, measurements),
    ]
    show(console, tables)
    if not arguments.quick:
        from chart import draw

        draw({case: rows[case] for case in ("Optuna", "LightGBM")}, IMAGES / "costs.svg")
        results = Path(__file__).with_name("results.md")
        results.write_text(markdown(tables, rounds), encoding="utf-8")
        sizes = {case: plan.size(case, HEADLINE_DELAY) for case in rows}
        table = headline_table(rows, sizes, HEADLINE_DELAY)
        put_into(COMPARISON, "make bench", table.markdown())
    lost = [
        f"{m.case}, {m.name}, {delay_label(m.delay)}: {m.points:,} points"
        for m in measurements
        if m.name != "none" and m.points != plan.points_of(m.case, m.delay)
    ]
    if lost:
        raise SystemExit("\n".join(["Fewer points on the server than were logged:", *lost]))


def _measure(plan: Plan, rounds: int, console: Console) -> list[Measurement]:
    measurements = []
    with Bench.running() as bench:
        for number in range(rounds):
            # In alternating order, so that none always follows the same one.
            for case, name, delay in list(plan.steps(number))[:: -1 if number % 2 else 1]:
                m = bench.measure(
                    case, name, delay=delay, round=number, size=plan.size(case, delay)
                )
                measurements.append(m)
                label = f"{number + 1}/{rounds} {case}, {name}, {delay_label(delay)}"
                console.print(f"{label}: {m.train:.2f} s, delivered {m.deliver:.2f} s later")
    return measurements


if __name__ == "__main__":
    main()
