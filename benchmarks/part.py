"""A part of the comparison: how it is measured, and what is written of it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from docs_parts import COMPARISON, put_into
from rich.console import Console
from tables import Table, conditions, show, wide_console

from mlflow_iap_callbacks.plurals import counted

RESULTS = Path(__file__).with_name("results.md")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: number of rounds; the ratios are of times in the same round.
        is_quick: whether this is a check with one small round.
    """

    rounds: int = 3
    is_quick: bool = False


@dataclass(frozen=True)
class Findings:
    """What was measured.

    Attributes:
        docs: texts for docs/comparison.md, by mark.
        wrong: what is missing or wrong, in one line each.
        draw: draws pictures for the documentation.
    """

    tables: Sequence[Table]
    docs: Mapping[str, str] = field(default_factory=dict)
    wrong: Sequence[str] = ()
    draw: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Part:
    """A part of the comparison, measured in one run.

    Attributes:
        name: name for ``--only``.
        note: how it is measured.
        packages: packages whose versions matter.
    """

    name: str
    title: str
    note: str
    packages: Sequence[str]
    measure: Callable[[Effort, Console], Findings]


def write(part: Part, findings: Findings, effort: Effort) -> None:
    """Write the part's tables into results.md, and its texts and pictures into docs."""
    texts = [
        f"## {part.title}",
        part.note.format(rounds=counted(effort.rounds, "round")),
        conditions(part.packages),
    ]
    for table in findings.tables:
        texts += [f"### {table.title}", table.markdown()]
    put_into(RESULTS, f"make bench: {part.name}", "\n\n".join(texts))
    for mark, text in findings.docs.items():
        put_into(COMPARISON, f"make bench: {mark}", text)
    findings.draw()


def run(parts: Sequence[Part], effort: Effort, *, is_written: bool) -> None:
    """Measure parts, one after the other, and show them.

    Raises:
        SystemExit: if something is missing or wrong. Such a part is not written.
    """
    # Exit by an exception on SIGTERM, so that servers are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    console = wide_console()
    wrong: list[str] = []
    for part in parts:
        console.rule(part.title)
        findings = part.measure(effort, console)
        show(console, findings.tables)
        wrong += findings.wrong
        if is_written and not findings.wrong:
            write(part, findings, effort)
    if wrong:
        raise SystemExit("\n".join(["Missing or wrong:", *wrong]))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options of all parts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=Effort.rounds)
    parser.add_argument("--quick", action="store_true", help="one small round, writes nothing")
    return parser


def effort_of(given: argparse.Namespace) -> Effort:
    return Effort(1 if given.quick else given.rounds, given.quick)


def show_alone(part: Part) -> None:
    """Measure a part and show it, without writing anything."""
    given = arguments(part.title).parse_args()
    run([part], effort_of(given), is_written=False)
