"""``mlflow-iap sync``: sends what dead processes left on this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from .console import console

if TYPE_CHECKING:
    from mlflow import MlflowClient


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be sent, but do not send it.")
@click.option("--refused", is_flag=True, help="Also send again what MLflow refused.")
@click.option(
    "--storage", metavar="URL", help="Log the trials in this Optuna storage that MLflow lacks."
)
@click.option("--study", metavar="NAME", help="Only this study of the storage.")
def sync(dry_run: bool, refused: bool, storage: str | None, study: str | None) -> None:
    """Send what dead processes left on this machine.

    These are processes that were killed, or that exited while MLflow was unreachable. Each record
    is sent to the server it was logged for, with the credentials found now. It is safe to run this
    command twice, and while other processes log.

    With --storage, it does so for MLFLOW_TRACKING_URI only, and then logs the trials that ended in
    an Optuna storage but that no callback saw, because their processes died first. URL is the URL
    of a database or of Redis, or the path of a file of JournalStorage. The exit status is 1 if
    anything is left.
    """
    if study is not None and storage is None:
        raise click.UsageError("--study needs --storage.")
    if refused and storage is not None:
        raise click.UsageError("--refused is for journals. Use it without --storage.")
    if storage is not None:
        from .storage import sync_storage

        sys.exit(1 if sync_storage(storage, study, dry_run=dry_run) else 0)
    from ..outbox import journal_folder

    dead = [journal for journal in journal_folder.survey() if not journal.is_live]
    dead = [journal for journal in dead if journal.records(refused=refused) or journal.runs]
    if not dead:
        console.print(f"Nothing waits in {journal_folder.folder()}.")
    left = 0
    for server in sorted({journal.server for journal in dead if journal.server}):
        found = [journal for journal in dead if journal.server == server]
        records = sum(journal.records(refused=refused) for journal in found)
        what = f"{records} records of {sum(journal.runs for journal in found)} runs for {server}"
        if dry_run:
            console.print(f"would send {what}")
            continue
        client = _client(server)
        waiting = send(client, server, refused=refused) if client else records
        left += waiting
        console.print(f"{waiting} records wait for {server}" if waiting else f"sent {what}")
    if left:
        sys.exit(1)


def send(client: MlflowClient, server: str, *, refused: bool) -> int:
    """Send what dead processes left for a server; return how many records still wait."""
    from ..delivery.progress import DeliveryBar
    from ..delivery.sender import Sender

    sender = Sender(client, server)
    sender.adopt(refused=refused)
    try:
        with DeliveryBar([sender], console) as bar:
            while not sender.flush(0.2) and not sender.is_stuck:
                bar.update()
        return sender.waiting
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
        return None
