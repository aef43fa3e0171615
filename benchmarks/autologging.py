"""What autologging costs a training: with MLflow as it is, asynchronous, and in the background.

python benchmarks/autologging.py --quick  # shows it; compare.py writes it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import autologs
from bench import Measurement
from callback_tables import Summary, case_table, summaries
from cases import CASES, autologged
from delays import DELAYS, DOWN, HEADLINE_DELAY, delay_label
from part import Effort, Findings, Part, show_alone
from rich.console import Console
from rounds import lost, measure_rounds
from tables import Table

_NOTE = """\
Medians of {rounds}. Each training has a process of its own and runs after a warm-up: without \
autologging (*none*), with MLflow as it is, with `MLFLOW_ENABLE_ASYNC_LOGGING`, and with \
`log_in_background()` of this package (*ours*). All use this package's transport. The run is \
started before the training. Models are logged only where the title says so: MLflow then loads the \
model in another process, to find the packages that it needs, which takes most of the time. The \
columns are those of the callbacks."""
_CALLED = {
    "mlflow": "MLflow as it is",
    "mlflow, async": "MLflow's asynchronous logging",
    "ours": "in the background",
}
_SHOWN_DELAYS = (HEADLINE_DELAY, 0.25)  # in the documentation


@dataclass(frozen=True)
class _Plan:
    """What is measured: the seconds added to each request, the rounds of a training, and what is
    trained without a server."""

    delays: tuple[float, ...] = DELAYS
    rounds: int = 100
    down: tuple[str, ...] = tuple(autologs.CONTENDERS)

    @property
    def libraries(self) -> list[str]:
        # There is no xgboost-cpu for some platforms.
        return [name for name in autologs.CONTENDERS if name != "XGBoost" or find_spec("xgboost")]

    def steps(self, number: int) -> Iterator[tuple[str, str, float]]:
        for library in self.libraries:
            case = autologged(library)
            for delay in self.delays:
                yield from ((case, name, delay) for name in CASES[case])
            # Without a server, MLflow's own retries block training for minutes.
            if library in self.down:
                yield from ((case, name, DOWN) for name in ("none", "ours"))

    def size(self, case: str, delay: float) -> int:
        return self.rounds


def _measure(effort: Effort, console: Console) -> Findings:
    plan = _Plan((HEADLINE_DELAY,), 10, ("LightGBM",)) if effort.is_quick else _Plan()
    measurements = measure_rounds(plan, effort.rounds, console)
    rows = {name: summaries(measurements, autologged(name)) for name in plan.libraries}
    tables = [case_table(_title(name, plan.rounds), rows[name]) for name in rows]
    docs = {} if effort.is_quick else {"autologging": _docs_table(rows).markdown()}
    return Findings(tables, docs, _wrong(measurements))


def _title(library: str, rounds: int) -> str:
    rounds = rounds // 10 + 1 if library == "scikit-learn" else rounds
    return f"{library}: {rounds} rounds, 20,000 rows, 1 thread"


def _wrong(measurements: Sequence[Measurement]) -> list[str]:
    """Each way must log as many points as MLflow as it is."""
    as_it_is = {m.case: m.points for m in measurements if m.name == "mlflow"}
    nothing = [f"{case}: no points with MLflow" for case, points in as_it_is.items() if not points]
    return nothing + lost(measurements, lambda m: as_it_is[m.case])


def _docs_table(rows: Mapping[str, Sequence[Summary]]) -> Table:
    cells = {
        (library, row.name, row.delay): f"{row.ratio(lambda m: m.train):.2f} times"
        for library, found in rows.items()
        for row in found
    }
    table = [
        [
            f"{library}, {called}",
            *(cells[library, name, delay] for delay in _SHOWN_DELAYS),
            cells.get((library, name, DOWN), "not measured"),
        ]
        for library in rows
        for name, called in _CALLED.items()
    ]
    heads = ["training takes", *map(delay_label, (*_SHOWN_DELAYS, DOWN))]
    return Table("", heads, table, names=1)


PART = Part(
    "autologging",
    "What autologging costs a training",
    _NOTE,
    ("mlflow", "lightgbm", "xgboost-cpu", "scikit-learn"),
    _measure,
)

if __name__ == "__main__":
    show_alone(PART)
