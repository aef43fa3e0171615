"""What the callbacks cost, compared with other integrations.

python benchmarks/callbacks.py --quick  # shows it; compare.py writes it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import Measurement
from callback_tables import (
    case_table,
    growth_table,
    headline_table,
    pairs_table,
    sentences,
    summaries,
    throughput_table,
)
from cases import CASES, LONGEST, in_pairs
from delays import DELAYS, DOWN, HEADLINE_DELAY
from docs_parts import IMAGES
from part import Effort, Findings, Part, show_alone
from rich.console import Console
from rounds import lost, measure_rounds
from sweeps import PAIRED_TRIALS
from tables import Table, conditions
from trainings import LONG_PAIRED_ROUNDS, PAIRED_ROUNDS

_NOTE = """\
Medians of {rounds} (other integrations: one), in alternating order, each in a separate \
process and after a warm-up. The server, IAP and training share the machine. In brackets: the \
time relative to training without a callback in the same round. *Delivered* is the time until \
the server has everything, *blocked* the time inside one call of the callback (median and 99th \
percentile; not visible for autolog), *requests* the number that IAP received. *Down* is a \
server that responds with 503 during training and works again afterwards. The other integrations \
do not support IAP, so they use this package's transport (MLFLOW_TRACKING_AUTH=iap). autolog \
also logs the data set and the feature importance.

![What a callback costs](../docs/images/costs.svg)"""
_PACKAGES = ("mlflow", "optuna", "optuna-integration", "lightgbm")
_LONG_TRAININGS = ("1,000 rounds", LONGEST)


@dataclass(frozen=True)
class _Plan:
    """What is measured: the seconds added to each request, and the size of each run."""

    delays: tuple[float, ...] = DELAYS
    trials: int = 20
    boosting_rounds: int = 100
    points: int = 100_000
    pairs: int = 15
    at_once: int = 16
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
            yield from ((in_pairs(case), "ours", delay) for delay in (*self.delays, DOWN))
            # Without a server, MLflow's own retries block other integrations for minutes.
            yield from ((case, name, DOWN) for name in ("none", "ours"))
        if number == 0:
            for case in ("8 at once", "long", "1,000 rounds"):
                yield from ((case, name, HEADLINE_DELAY) for name in CASES[case])
            for delay in self.delays:
                yield from ((LONGEST, name, delay) for name in CASES[LONGEST])
                if self.long_pairs:
                    yield in_pairs(LONGEST), "ours", delay
        for delay in self.delays[: 2 if number == 0 else 1]:
            yield from (("throughput", name, delay) for name in CASES["throughput"])

    def size(self, case: str, delay: float) -> int:
        """Return the number of trials, rounds or points of a run."""
        sizes = {"Optuna": self.trials, "LightGBM": self.boosting_rounds, "throughput": self.points}
        sizes |= {"8 at once": self.at_once, "long": self.long_trials}
        sizes[in_pairs(LONGEST)] = self.long_pairs
        sizes |= dict(zip(_LONG_TRAININGS, self.long_rounds, strict=True))
        # Long enough that some requests are sent, and fail, before training ends.
        longer = 4 if (case, delay) == ("LightGBM", DOWN) else 1
        return sizes.get(case, self.pairs) * longer

    def points_of(self, case: str, delay: float) -> int:
        """Return the number of points that the server must have."""
        each = {
            "LightGBM": 4,  # 2 sets, 2 metrics
            **dict.fromkeys(_LONG_TRAININGS, 12),  # 3 sets, 4 metrics
            in_pairs("Optuna"): PAIRED_TRIALS,
            in_pairs("LightGBM"): PAIRED_ROUNDS * 4,
            in_pairs(LONGEST): LONG_PAIRED_ROUNDS * 12,
        }
        return self.size(case, delay) * each.get(case, 1)


_QUICK = _Plan((HEADLINE_DELAY,), 3, 10, 4_000, 2, 8, 40, (50, 500), 0)


def _measure(effort: Effort, console: Console) -> Findings:
    plan = _QUICK if effort.is_quick else _Plan()
    measurements = measure_rounds(plan, effort.rounds, console)
    wrong = lost(measurements, lambda m: plan.points_of(m.case, m.delay))
    return _findings(plan, measurements, wrong)


def _findings(plan: _Plan, measurements: Sequence[Measurement], wrong: Sequence[str]) -> Findings:
    cases = ("Optuna", "LightGBM", "8 at once", "long", *_LONG_TRAININGS)
    rows = {case: summaries(measurements, case) for case in cases}
    titles = _titles(plan)
    headlines = headline_table(
        rows, {case: plan.size(case, HEADLINE_DELAY) for case in rows}, HEADLINE_DELAY
    )

    def draw() -> None:
        from chart import draw as draw_chart

        draw_chart({case: rows[case] for case in ("Optuna", "LightGBM")}, IMAGES / "costs.svg")

    tables: list[Table] = [
        *(case_table(titles[case], rows[case]) for case in rows),
        growth_table(rows["long"]),
        pairs_table(measurements),
        throughput_table(titles["throughput"], measurements),
    ]
    docs = {
        "callbacks": f"{headlines.markdown()}\n\n{conditions(_PACKAGES)}",
        "sentences": sentences(measurements),
    }
    return Findings(tables, docs, wrong, draw)


def _titles(plan: _Plan) -> dict[str, str]:
    return {
        "Optuna": f"Optuna: {plan.trials} trials, each sleeping for 0.1 s; 8 params",
        "8 at once": f"Optuna, n_jobs=8: {plan.at_once} trials, each sleeping for 1 s",
        "long": f"Optuna: {plan.long_trials} trials, each sleeping for 0.01 s",
        "LightGBM": f"LightGBM: {plan.boosting_rounds} rounds (down: {plan.boosting_rounds * 4}), "
        "2 sets with 2 metrics, 1 thread",
        **{
            case: f"LightGBM: {plan.size(case, 0):,} rounds, 3 sets with 4 metrics, 1 thread"
            for case in _LONG_TRAININGS
        },
        "throughput": f"Throughput: {plan.points:,} points to one run, and a loop of log_batch",
    }


PART = Part("callbacks", "What the callbacks cost", _NOTE, _PACKAGES, _measure)

if __name__ == "__main__":
    show_alone(PART)
