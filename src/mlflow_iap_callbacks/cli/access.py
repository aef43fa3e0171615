"""``mlflow-iap token`` and ``doctor``: which identity reaches the server, or what stops it."""

from __future__ import annotations

import os
import sys

import click
from rich.markup import escape

from .console import console, plain_table


@click.command()
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
    table = plain_table()
    for name, value in described.items():
        table.add_row("", f"[bold]{name}", escape(value))
    console.print(table)


@click.command()
def doctor() -> None:
    """Tell step by step what stands between here and MLflow.

    From the environment to a real API call, with what to do where it stops.
    """
    from .doctor import examine

    is_good = True
    for finding in examine(_tracking_uri()):
        mark = "[green]ok[/]" if finding.is_good else "[red]no[/]"
        table = plain_table()
        table.add_row(mark, f"[bold]{finding.step}", escape(finding.saw))
        console.print(table)
        is_good = finding.is_good
    if not is_good:
        sys.exit(1)


def _tracking_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise click.ClickException(
            "MLFLOW_TRACKING_URI is not set. Set it to https://HOST, or try "
            "`mlflow-iap local` on this machine."
        )
    return uri
