"""``mlflow-iap status``: shows what is not in MLflow yet."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click
from rich import filesize

from ..plurals import counted
from .console import console, print_line, print_rows

if TYPE_CHECKING:
    from ..outbox.journal_folder import JournalReport


@click.command()
def status() -> None:
    """Show what was logged on this machine but is not in MLflow yet.

    List the journals of all processes, with the records that are waiting to be sent and those that
    MLflow refused. MLFLOW_IAP_OUTBOX sets the folder of the journals.
    """
    from ..outbox import journal_folder

    found = journal_folder.survey()
    if not found:
        print_line(f"No records are waiting in {journal_folder.folder()}.")
    for journal in found:
        print_rows(_described(journal))
    if any(journal.waiting and not journal.is_live and journal.is_from_here for journal in found):
        console.print("`mlflow-iap sync` sends what dead processes left behind.")
    if any(not journal.is_live and not journal.is_from_here for journal in found):
        console.print("`mlflow-iap sync --other-hosts` sends what processes of other hosts left.")


def _ago(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{timedelta(seconds=int(time.time() - seconds))} ago, by that host's clock"


def _described(journal: JournalReport) -> dict[str, str]:
    life = "alive" if journal.is_live else "dead" if journal.is_from_here else "another host"
    age = timedelta(seconds=int(time.time() - journal.begun))
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(journal.waiting.items()))
    refused = "\n".join(f"{n} x {reason}" for reason, n in journal.refused.items())
    rows = {
        "process": f"{journal.pid} on {journal.host} ({life}), started {age} ago",
        "last alive": _ago(journal.last_beat) if not journal.is_from_here else None,
        "server": journal.server,
        "waiting": f"{counted(journal.records(), 'record')} of {counted(journal.runs, 'run')}"
        + f" ({kinds})" * bool(kinds),
        "because": journal.trouble,
        "refused": refused,
        "unreadable": journal.error,
        "on disk": f"{journal.path}, {filesize.decimal(journal.bytes)}",
    }
    return {name: value or "" for name, value in rows.items() if value or name == "server"}
