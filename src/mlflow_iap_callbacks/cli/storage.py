"""``mlflow-iap sync --storage``: logs a storage's trials that MLflow lacks."""

from __future__ import annotations

from collections.abc import Sequence

import click
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ..delivery.lifecycle import flush, sender_for
from ..delivery.progress import deliver
from ..errors import IAPError
from ..iap.client import IAPMlflowClient
from ..optuna.storage import StorageError, open_storage, studies_of
from ..optuna.stored_study import StoredStudy
from .console import console

# This is longer than a trial waits to be logged by the process that executed it, and longer than
# the restart of an App Engine instance.
_SECONDS_TO_DELIVER = 60.0


def sync_storage(
    url: str, name: str | None, *, dry_run: bool, client: MlflowClient | None = None
) -> int:
    """Log the ended trials that MLflow lacks, of a storage's studies.

    Args:
        url: URL of the storage.
        name: name of a study. Default: all studies.
        dry_run: only print what would be logged.
        client: a client of the server. Default: ``IAPMlflowClient()``.

    Returns:
        Number of trials that MLflow still lacks.

    Raises:
        ClickException: the storage or MLflow cannot be read.
    """
    try:
        client = client or IAPMlflowClient()
        studies = studies_of(open_storage(url), url, name)
        if not dry_run:
            _send_journals(client)
        return _sync([StoredStudy(study, client) for study in studies], client, dry_run=dry_run)
    except StorageError as error:
        raise click.ClickException(str(error)) from None
    except IAPError as error:
        raise click.ClickException(error.message) from None
    except MlflowException as error:
        raise click.ClickException(
            f"A request to MLflow failed: {str(error).splitlines()[0]}"
        ) from None


def _sync(studies: Sequence[StoredStudy], client: MlflowClient, *, dry_run: bool) -> int:
    found = {stored: stored.compare() for stored in studies}
    lacking = [stored for stored in studies if found[stored].lacking and not dry_run]
    for stored in lacking:
        stored.log()
    if lacking:
        flush(client, _SECONDS_TO_DELIVER)
    left = {stored: len(stored.compare().lacking) for stored in lacking}
    for stored in studies:
        counts = {
            "to log" if dry_run else "logged": len(found[stored].lacking) - left.get(stored, 0),
            "already in MLflow": len(found[stored].logged),
            "still running": stored.states["RUNNING"],
            "not sent yet (run this command again)": left.get(stored, 0),
        }
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        click.echo(f"study {stored.study.study_name!r}: {said or 'no trial has ended'}")
    return sum(left.values())


def _send_journals(client: MlflowClient) -> None:
    """Send dead processes' journals for this server: they have what a storage lacks."""
    sender = sender_for(client)
    sender.adopt_safely()
    deliver(sender, console)
