"""How fast a server can take the trials of a sweep, and how fast this package delivers them.

python benchmarks/sweep_limit.py --quick  # shows it; compare.py writes it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import Measurement
from cases import CASES, SWEEP_LIMIT
from delays import HEADLINE_DELAY
from part import Effort, Findings, Part, show_alone
from rich.console import Console
from rounds import lost, measure_rounds
from tables import Table

_NOTE = """\
Plain clients, several at once, send the three requests of each trial: create the run, log its \
params and value, end it. The callback (*ours*) delivers as many trials of 0.01 s. The server, a \
proxy that adds 60 ms to each request, and the clients share the machine."""


@dataclass(frozen=True)
class _Plan:
    trials: int = 2000

    def steps(self, number: int) -> Iterator[tuple[str, str, float]]:
        yield from ((SWEEP_LIMIT, name, HEADLINE_DELAY) for name in CASES[SWEEP_LIMIT])

    def size(self, case: str, delay: float) -> int:
        return self.trials


def _measure(effort: Effort, console: Console) -> Findings:
    plan = _Plan(20) if effort.is_quick else _Plan()
    measurements = measure_rounds(plan, 1, console)  # takes minutes
    wrong = lost(measurements, lambda m: plan.trials)
    return Findings([_table(measurements, plan.trials)], wrong=wrong)


def _table(measurements: Sequence[Measurement], trials: int) -> Table:
    best = min(m.total for m in measurements if m.name != "ours")
    rows = [
        [m.name, f"{m.total:.1f}", f"{trials / m.total:.1f}", f"{m.total / best:.2f}"]
        for m in measurements
    ]
    heads = ["", "until delivered, s", "trials /s", "of the fastest clients"]
    return Table(f"{trials:,} trials", heads, rows, names=1)


PART = Part("sweeps", "The most trials that a server takes", _NOTE, ("mlflow", "optuna"), _measure)

if __name__ == "__main__":
    show_alone(PART)
