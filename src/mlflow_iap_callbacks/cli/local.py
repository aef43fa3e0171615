"""``mlflow-iap local``: MLflow behind an IAP on this machine."""

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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from .console import console

if TYPE_CHECKING:
    from ..local import LocalCloud
    from ..local.record import SeenRequest

# Settings for another server, which would lead a command astray at the local one.
_IN_THE_WAY = (
    *("MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID", "MLFLOW_IAP_IMPERSONATE"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"),
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps runs, artifacts and keys. Default: a temporary folder, removed at the end.",
)
@click.option("--port", default=0, help="IAP's port. Default: a free one.")
@click.option(
    "--token-lifetime",
    default=3600.0,
    metavar="SECONDS",
    help="How long tokens are good for. Default: Google's hour.",
)
@click.option(
    "--client-id",
    metavar="ID",
    help="An OAuth client of your own on IAP. Default: the Google-managed one.",
)
@click.option("--stay", is_flag=True, help="Go on serving when COMMAND has ended.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def local(
    folder: Path | None,
    port: int,
    token_lifetime: float,
    client_id: str | None,
    stay: bool,
    command: Sequence[str],
) -> None:
    """Start MLflow behind an IAP of its own on this machine.

    Prints the variables to export. With -- COMMAND runs it under them, tells what IAP saw and ends
    with COMMAND's status. Listens on loopback only.
    """
    from ..local import LocalCloud, MlflowServer

    if command and shutil.which(command[0]) is None:
        raise _cannot_run(command[0], "there is no such program")
    # SIGTERM as Ctrl-C, so that COMMAND and the servers are ended whichever comes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-iap-")))
        folder.mkdir(parents=True, exist_ok=True)
        with console.status("starting an MLflow server"):
            server = stack.enter_context(MlflowServer(folder / "mlflow"))
        cloud = stack.enter_context(
            LocalCloud(
                server.url,
                token_lifetime=token_lifetime,
                client_id=client_id,
                folder=folder / "google",
                port=port,
            )
        )
        status = use(cloud, command, stay=stay)
    sys.exit(status)


def use(cloud: LocalCloud, command: Sequence[str], *, stay: bool = False) -> int:
    """Run a command under the cloud's variables and tell what IAP saw.

    Args:
        cloud: that runs.
        command: with its arguments; empty to print the variables and wait for Ctrl-C instead.
        stay: whether to do that as well when the command has ended.

    Returns: the command's status.
    """
    status = 0
    exports = {**cloud.environment(), **_around_proxies()}
    if command:
        kept = {name: v for name, v in os.environ.items() if name not in _IN_THE_WAY}
        status = _run(command, {**kept, **exports})
        console.print(_summary(cloud))
    if stay or not command:
        console.print(f"\nMLflow behind IAP: [bold]{cloud.url}[/]  (Ctrl-C ends it)\n")
        for name in _IN_THE_WAY:
            if name in os.environ and name not in exports:
                click.echo(f"unset {name}")
        for name, value in exports.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        _wait_for_signal()
    return status


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    try:
        done = subprocess.run(list(command), env=environment, check=False)  # noqa: S603 - the user's
    except OSError as error:
        raise _cannot_run(command[0], error.strerror) from None
    return done.returncode


def _cannot_run(program: str, why: str | None) -> click.ClickException:
    return click.ClickException(f"{program!r} cannot be run: {why}. Give the command behind `--`.")


def _around_proxies() -> dict[str, str]:
    """This machine is reached directly, whatever proxy is set for the others."""
    if not any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        return {}
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, [others, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def _summary(cloud: LocalCloud) -> Table:
    bearers = [seen.headers.get("authorization", "") for seen in cloud.requests]
    good = {text for seen, text in zip(cloud.requests, bearers, strict=True) if seen.token_kind}
    rejected = [
        seen
        for seen, text in zip(cloud.requests, bearers, strict=True)
        if text in good and seen.iap_answer and seen.status == 401
    ]
    passed = {_same(seen): seen.time for seen in cloud.requests if seen.reached_upstream}
    healed = [seen for seen in rejected if passed.get(_same(seen), 0.0) > seen.time]
    answers = Counter(seen.status for seen in cloud.requests)
    table = Table(box=None, show_header=False, title="What IAP saw", title_justify="left")
    rows = {
        "requests": len(cloud.requests),
        "tokens fetched or signed": len(good),
        "401s healed": f"{len(healed)} of {len(rejected)}",
        "answers by status": ", ".join(f"{n} x {status}" for status, n in sorted(answers.items())),
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _same(seen: SeenRequest) -> tuple[str, str, str]:
    return seen.method, seen.path, seen.headers.get("content-length", "")


def _wait_for_signal() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("ending")
