"""Measures the steps of a plan, round after round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from bench import Bench, Measurement
from delays import delay_label
from rich.console import Console


class Plan(Protocol):
    """What is measured in each round, and how large it is."""

    def steps(self, number: int) -> Iterator[tuple[str, str, float]]:
        """Yield case, contender and delay, in the order of a round."""

    def size(self, case: str, delay: float) -> int:
        """Return the number of trials, rounds or points of a run."""


def measure_rounds(plan: Plan, rounds: int, console: Console) -> list[Measurement]:
    """Measure all steps of a plan with one server, and print each."""
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


def lost(measurements: Iterable[Measurement], expected: Callable[[Measurement], int]) -> list[str]:
    """Return what the server lacks, or has too much of, although it was reported as delivered."""
    return [
        f"{m.case}, {m.name}, {delay_label(m.delay)}: {m.points:,} points instead of {wanted:,}"
        for m in measurements
        if m.name != "none" and m.points != (wanted := expected(m))
    ]
