"""``mlflow-iap status`` and ``sync``: what waits on this machine, and its delivery."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click
from rich import filesize
from rich.markup import escape

from .console import console, plain_table

if TYPE_CHECKING:
    from ..outbox.journals import JournalReport


@click.command()
def status() -> None:
    """Show what was logged on this machine and is not in MLflow: what waits, and what was refused.

    MLFLOW_IAP_OUTBOX names the folder that is looked into.
    """
    from ..outbox import journals

    found = journals.survey()
    if not found:
        console.print(f"Nothing waits in {journals.folder()}.")
    for journal in found:
        table = plain_table()
        for name, value in _described(journal).items():
            table.add_row("", f"[bold]{name}", escape(value))
        console.print(table)
    if any(journal.waiting and not journal.is_live for journal in found):
        console.print("`mlflow-iap sync` sends what dead processes left.")


@click.command()
@click.option("--dry-run", is_flag=True, help="Tell what would be sent, and send nothing.")
@click.option("--refused", is_flag=True, help="Send what MLflow refused once more, too.")
def sync(dry_run: bool, refused: bool) -> None:
    """Send what processes left that were killed, or ended while MLflow was away.

    Each to the server that it was meant for, with the credentials that are found here. Safe to run
    twice, and beside processes that log.
    """
    from ..outbox import journals

    dead = [journal for journal in journals.survey() if not journal.is_live]
    left = 0
    dead = [journal for journal in dead if journal.records(refused=refused) or journal.runs]
    for server in sorted({journal.server for journal in dead if journal.server}):
        there = [journal for journal in dead if journal.server == server]
        waiting = sum(journal.records(refused=refused) for journal in there)
        runs = sum(journal.runs for journal in there)
        what = f"{waiting} records of {runs} runs for {server}"
        if dry_run:
            console.print(f"would send {what}")
            continue
        waits = _send(server, refused=refused)
        left += waits
        console.print(f"sent {what}" if not waits else f"{waits} records wait for {server}")
    if not dead:
        console.print(f"Nothing waits in {journals.folder()}.")
    if left:
        sys.exit(1)


def _send(server: str, *, refused: bool) -> int:
    """Send what waits for a server; return how many records go on waiting, and say why."""
    from ..delivery.progress import flush_with_bar
    from ..delivery.sender import Sender
    from ..delivery.server_uri import server_uri
    from ..errors import IAPError
    from ..iap.client import IAPMlflowClient

    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        # Journals keep no password that a URI may carry.
        client = IAPMlflowClient(given if given and server_uri(given) == server else server)
    except IAPError as error:
        raise click.ClickException(error.message) from None
    sender = Sender(client, server)
    sender.adopt(refused=refused)
    try:
        for _ in flush_with_bar(sender, console):
            if sender.is_stuck:
                break
        return sender.waiting
    finally:
        sender.close()


def _described(journal: JournalReport) -> dict[str, str]:
    life = "alive" if journal.is_live else "dead"
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(journal.waiting.items()))
    return {
        "process": f"{journal.pid} on {journal.host} ({life}), begun {_ago(journal.begun)}",
        "server": journal.server,
        "waiting": f"{journal.records()} records of {journal.runs} runs"
        + f" ({kinds})" * bool(kinds),
        **({"because": journal.trouble} if journal.trouble else {}),
        **({"refused": _counted(journal.refused)} if journal.refused else {}),
        **({"unreadable": journal.error} if journal.error else {}),
        "on disk": f"{journal.path}, {filesize.decimal(journal.bytes)}",
    }


def _counted(reasons: Mapping[str, int]) -> str:
    return "\n".join(f"{n} x {reason}" for reason, n in reasons.items())


def _ago(moment: float) -> str:
    minutes, seconds = divmod(max(0, int(time.time() - moment)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min ago" if hours else f"{minutes} min {seconds:02} s ago"
