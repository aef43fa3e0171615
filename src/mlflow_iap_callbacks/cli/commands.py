"""The command ``mlflow-iap``."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import filesize
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..local import LocalCloud
    from ..local.record import SeenRequest
    from ..outbox.journals import Journal

_console = Console(highlight=False)

# Settings for another server, which would lead a command astray at the local one.
_IN_THE_WAY = (
    *("MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID", "MLFLOW_IAP_IMPERSONATE"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-iap-callbacks")
def main() -> None:
    """MLflow behind Google's Identity-Aware Proxy: try it here, look into it there."""


@main.command()
@click.option("--raw", is_flag=True, help="Print the token itself, and nothing else.")
def token(raw: bool) -> None:
    """Show which credentials and kind of token are in use.

    For the server of MLFLOW_TRACKING_URI. The token itself is printed with --raw only:

        curl -H "Authorization: Bearer $(mlflow-iap token --raw)" $MLFLOW_TRACKING_URI/version
    """
    from ..errors import IAPError
    from ..iap.auth import IAPAuth
    from ..iap.credentials import IAPCredentials

    try:
        credentials = IAPAuth(_tracking_uri(), IAPCredentials()).credentials
        if raw:
            click.echo(credentials.token())
            return
        described = credentials.describe()
    except IAPError as error:
        raise click.ClickException(error.message) from None
    table = _plain_table()
    for name, value in described.items():
        table.add_row("", f"[bold]{name}", escape(value))
    _console.print(table)


@main.command()
def doctor() -> None:
    """Tell step by step what stands between here and MLflow.

    From the environment to a real API call, with what to do where it stops.
    """
    from .doctor import examine

    is_good = True
    for finding in examine(_tracking_uri()):
        mark = "[green]ok[/]" if finding.is_good else "[red]no[/]"
        table = _plain_table()
        table.add_row(mark, f"[bold]{finding.step}", escape(finding.saw))
        _console.print(table)
        is_good = finding.is_good
    if not is_good:
        sys.exit(1)


@main.command()
def status() -> None:
    """Show what was logged on this machine and is not in MLflow: what waits, and what was refused.

    MLFLOW_IAP_OUTBOX names the folder that is looked into.
    """
    from ..outbox import journals

    found = journals.survey()
    if not found:
        _console.print(f"Nothing waits in {journals.folder()}.")
    for journal in found:
        table = _plain_table()
        for name, value in _described(journal).items():
            table.add_row("", f"[bold]{name}", escape(value))
        _console.print(table)
    if any(journal.waiting and not journal.is_live for journal in found):
        _console.print("`mlflow-iap sync` sends what dead processes left.")


@main.command()
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
            _console.print(f"would send {what}")
            continue
        waits = _send(server, refused=refused)
        left += waits
        _console.print(f"sent {what}" if not waits else f"{waits} records wait for {server}")
    if not dead:
        _console.print(f"Nothing waits in {journals.folder()}.")
    if left:
        sys.exit(1)


def _send(server: str, *, refused: bool) -> int:
    """Send what waits for a server; return how many records go on waiting, and say why."""
    from ..delivery.lifecycle import flush_with_bar, lasting_uri
    from ..delivery.sender import Sender
    from ..errors import IAPError
    from ..iap.client import IAPMlflowClient

    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        # Journals keep no password that a URI may carry.
        client = IAPMlflowClient(given if given and lasting_uri(given) == server else server)
    except IAPError as error:
        raise click.ClickException(error.message) from None
    sender = Sender(client, server)
    sender.adopt(refused=refused)
    try:
        for _ in flush_with_bar(sender, _console):
            if sender.is_stuck:
                break
        return sender.waiting
    finally:
        sender.close()


def _described(journal: Journal) -> dict[str, str]:
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


@main.command(context_settings={"ignore_unknown_options": True})
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
        with _console.status("starting an MLflow server"):
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
        _console.print(_summary(cloud))
    if stay or not command:
        _console.print(f"\nMLflow behind IAP: [bold]{cloud.url}[/]  (Ctrl-C ends it)\n")
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


def _plain_table() -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(width=2)
    table.add_column(width=11)
    table.add_column(overflow="fold")  # paths and commands stay whole
    return table


def _wait_for_signal() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        _console.print("ending")


def _tracking_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise click.ClickException(
            "MLFLOW_TRACKING_URI is not set. Set it to https://HOST, or try "
            "`mlflow-iap local` on this machine."
        )
    return uri
