"""``mlflow-iap local``: MLflow behind a local IAP, to try things out."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from ..local.client_environment import FOREIGN_VARIABLES, client_environment
from .console import console

if TYPE_CHECKING:
    from ..local import LocalCloud
    from ..local.request_log import SeenRequest


@click.command(context_settings={"ignore_unknown_options": True, "show_default": True})
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    show_default="a temporary folder, removed at the end",
    help="Folder for runs, artifacts and keys.",
)
@click.option("--port", default=0, help="Port of IAP; 0 for a free port.")
@click.option("--token-lifetime", default=3600.0, metavar="SECONDS", help="Lifetime of tokens.")
@click.option("--client-id", show_default="Google-managed", help="OAuth client id of IAP.")
@click.option("--stay", is_flag=True, help="Keep serving after COMMAND has ended.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def local(
    folder: Path | None,
    port: int,
    token_lifetime: float,
    client_id: str | None,
    stay: bool,
    command: Sequence[str],
) -> None:
    """Run MLflow behind a local IAP, reachable only from this machine.

    Without COMMAND, print the environment variables to export and serve until Ctrl-C. With
    COMMAND, run it with these variables, show how many requests IAP received, and exit with
    COMMAND's status:

        mlflow-iap local -- python train.py
    """
    from ..local import LocalCloud, MlflowServer

    if command and shutil.which(command[0]) is None:
        raise _cannot_run(command[0], "there is no such program")
    # SIGTERM acts like Ctrl-C, so that COMMAND and the servers always end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-iap-")))
        folder.mkdir(parents=True, exist_ok=True)
        with console.status("starting an MLflow server"):
            server = stack.enter_context(MlflowServer(folder / "mlflow"))
        cloud = LocalCloud(
            server.url,
            token_lifetime=token_lifetime,
            client_id=client_id,
            folder=folder / "google",
            port=port,
        )
        status = use(stack.enter_context(cloud), command, stay=stay)
    sys.exit(status)


def use(cloud: LocalCloud, command: Sequence[str], *, stay: bool = False) -> int:
    """Run a command with the cloud's variables, show what IAP saw, and return the exit status.

    If there is no command, or if ``stay`` is set, then print the variables and wait for Ctrl-C.
    """
    status = 0
    exports = client_environment(cloud)
    if command:
        kept = {name: v for name, v in os.environ.items() if name not in FOREIGN_VARIABLES}
        try:
            status = subprocess.call(list(command), env={**kept, **exports})  # noqa: S603
        except OSError as error:
            raise _cannot_run(command[0], str(error.strerror)) from None
        table = Table(box=None, show_header=False, title="What IAP saw", title_justify="left")
        for name, value in _summary(cloud.requests).items():
            table.add_row(name, value)
        console.print(table)
    if stay or not command:
        console.print(f"\nMLflow behind IAP: [bold]{cloud.url}[/]  (Ctrl-C to stop)\n")
        for name in FOREIGN_VARIABLES:
            if name in os.environ and name not in exports:
                click.echo(f"unset {name}")
        for name, value in exports.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("stopping")
    return status


def _cannot_run(program: str, why: str) -> click.ClickException:
    return click.ClickException(f"Cannot run {program!r}: {why}. Put the command after `--`.")


def _summary(requests: Sequence[SeenRequest]) -> dict[str, str]:
    """Count requests, tokens, rejected tokens, and those that a retry replaced."""
    good = {_bearer(seen) for seen in requests if seen.token_kind}
    rejected = [
        seen
        for seen in requests
        if _bearer(seen) in good and seen.iap_answer and seen.status == 401
    ]
    passed = {_same(seen): seen.time for seen in requests if seen.reached_upstream}
    replaced = [seen for seen in rejected if passed.get(_same(seen), 0.0) > seen.time]
    statuses = Counter(seen.status for seen in requests)
    return {
        "requests": str(len(requests)),
        "tokens fetched or signed": str(len(good)),
        "rejected tokens replaced": f"{len(replaced)} of {len(rejected)}",
        "responses by status": ", ".join(
            f"{n} x {status}" for status, n in sorted(statuses.items())
        ),
    }


def _bearer(seen: SeenRequest) -> str:
    return seen.headers.get("authorization", "")


def _same(seen: SeenRequest) -> tuple[str, str, str]:
    return seen.method, seen.path, seen.headers.get("content-length", "")
