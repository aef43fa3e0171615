"""``mlflow-iap sync``: sends what dead processes left behind on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ..plurals import counted
from .console import console, print_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ..outbox.adoption import Untaken
    from ..outbox.journal_folder import JournalReport


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be sent, but do not send it.")
@click.option("--refused", is_flag=True, help="Also send the records that MLflow refused before.")
@click.option(
    "--other-hosts",
    is_flag=True,
    help="Also send what processes of other hosts left in a shared folder, if they have ended.",
)
@click.option(
    "--storage", metavar="URL", help="Log trials of this Optuna storage that are not in MLflow."
)
@click.option("--study", metavar="NAME", help="Log only the trials of this study.")
def sync(
    dry_run: bool, refused: bool, other_hosts: bool, storage: str | None, study: str | None
) -> None:
    """Send the records that dead processes left on this machine.

    These processes were killed, or exited while MLflow was unreachable. Each record is sent to the
    server it was logged for, with the credentials that are available now. It is safe to run this
    command twice, and while other processes are logging. The exit status is 1 if any records are
    still waiting, including those of a process that is still running.

    If several hosts share the folder, records of other hosts are not sent by default. With
    --other-hosts, they are sent if the processes that wrote them have ended. On a terminal, you are
    asked whether they have. Without a terminal, a process whose journal does not change for 90
    seconds counts as ended.

    With --storage, only records for MLFLOW_TRACKING_URI are sent. Then the command logs the trials
    that have ended according to an Optuna storage but are not in MLflow, for example because
    their processes were killed. URL is the URL of a database or of Redis, or the path of a
    JournalStorage file.
    """
    if study is not None and storage is None:
        raise click.UsageError("--study needs --storage.")
    if refused and storage is not None:
        raise click.UsageError("--refused is for journals. Use it without --storage.")
    if storage is not None:
        from .storage import sync_storage

        sys.exit(1 if sync_storage(storage, study, dry_run=dry_run) else 0)
    from ..outbox import journal_folder

    found = [
        journal
        for journal in journal_folder.survey()
        if journal.records(refused=refused) or journal.runs or journal.error
    ]
    there = [journal for journal in found if not (journal.is_from_here or journal.is_live)]
    taken: Sequence[Path] = ()
    if other_hosts:
        from .other_hosts import abandoned

        taken = abandoned(there)
    dead = [journal for journal in found if not journal.is_live]
    dead = [journal for journal in dead if journal not in there or journal.path in taken]
    if not dead:
        print_line(f"There is nothing to send in {journal_folder.folder()}.")
    is_left = False
    for server in sorted({_server_of(journal) for journal in dead}):
        some = [journal for journal in dead if _server_of(journal) == server]
        records = sum(journal.records(refused=refused) for journal in some)
        runs = sum(journal.runs for journal in some)
        what = f"{counted(records, 'record')} of {counted(runs, 'run')}"
        if dry_run:
            print_line(f"would send {what} to {server or 'an unknown server'}")
        elif not _is_sent(server, some, refused=refused, other_hosts=taken):
            is_left = True
    for journal in found:
        if journal not in dead:
            is_left |= bool(journal.records(refused=refused) or journal.error)
        if journal.is_live:
            print_line(f"{journal.path} is in use by process {journal.pid} on {journal.host}.")
        elif journal not in dead:
            how = "`mlflow-iap sync --other-hosts` sends it"
            if other_hosts:
                how = "its process may still be running"
            print_line(f"{journal.path} is from another host, {journal.host}: {how}.")
    sys.exit(1 if is_left else 0)


def _server_of(journal: JournalReport) -> str:
    """Return a journal's server, or MLFLOW_TRACKING_URI if that matches a damaged journal."""
    from ..delivery.server_uri import server_uri
    from ..outbox.journal_folder import is_for

    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not journal.server and given and is_for(server_uri(given), journal.path):
        return server_uri(given)
    return journal.server


def _is_sent(
    server: str, journals: Sequence[JournalReport], *, refused: bool, other_hosts: Sequence[Path]
) -> bool:
    """Send what dead processes left for a server, and print what was sent and what was not."""
    if not server:
        for journal in journals:
            print_line(
                f"{journal.path} is damaged, and its server is unknown. Set MLFLOW_TRACKING_URI to "
                "the URI of its server, and run this command again."
            )
        return False
    client = _client(server)
    if client is None:
        records = sum(journal.records(refused=refused) for journal in journals)
        print_line(f"{counted(records, 'record')} waiting for {server}")
        return False
    sent = send(client, server, refused=refused, other_hosts=other_hosts)
    print_line(f"sent {counted(sent.delivered, 'record')} to {server}")
    if sent.refused:
        refusals = counted(sent.refused, "record")
        print_line(f"MLflow refused {refusals}; run `mlflow-iap status` for the reasons.")
    if sent.waiting:
        why = sent.trouble or "it has not accepted them yet"
        print_line(f"{counted(sent.waiting, 'record')} waiting for {server}: {why}")
    for untaken in sent.untaken:
        print_line(f"The journal {untaken.path} cannot be sent: {untaken.why}.")
    if sent.is_interrupted:
        raise click.Abort
    return not (sent.waiting or sent.untaken)


class Sent(NamedTuple):
    """The result of sending the journals for a server.

    Args:
        delivered: number of records that MLflow accepted.
        refused: number of records that MLflow permanently rejects.
        waiting: number of records that are still waiting.
        trouble: why they are waiting, if known.
        untaken: the journals that could not be taken over.
        is_interrupted: whether the user pressed Ctrl-C.
    """

    delivered: int
    refused: int
    waiting: int
    trouble: str | None
    untaken: list[Untaken]
    is_interrupted: bool


def send(
    client: MlflowClient, server: str, *, refused: bool = False, other_hosts: Sequence[Path] = ()
) -> Sent:
    """Send what dead processes left for a server."""
    from ..delivery.progress import deliver
    from ..delivery.sender import Sender

    sender = Sender(client, server)
    untaken = sender.adopt(refused=refused, other_hosts=other_hosts)
    is_interrupted = False
    try:
        try:
            deliver(sender, console)
        except KeyboardInterrupt:
            is_interrupted = True
        troubles = (run.trouble for outbox in sender.outboxes for run in outbox.runs())
        trouble = next(filter(None, troubles), None)
        if is_interrupted:
            trouble = "interrupted; run `mlflow-iap sync` to continue"
        counts = (sender.delivered, sender.refused, sender.waiting)
        return Sent(*counts, trouble, untaken, is_interrupted)
    finally:
        sender.close()


def _client(server: str) -> MlflowClient | None:
    from ..delivery.server_uri import server_uri
    from ..errors import IAPError
    from ..iap.client import IAPMlflowClient

    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        # A journal does not store the password that a URI may contain.
        return IAPMlflowClient(given if given and server_uri(given) == server else server)
    except IAPError as error:
        click.echo(f"Error: {error.message}", err=True)
    except Exception as error:  # noqa: BLE001 - an odd URI must not stop the other servers
        click.echo(f"Error: {server} cannot be used: {error}", err=True)
    return None
