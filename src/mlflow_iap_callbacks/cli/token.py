"""``mlflow-iap token``: shows the credentials in use."""

from __future__ import annotations

import os

import click

from .console import print_rows


@click.command()
@click.option("--raw", is_flag=True, help="Print only the token.")
def token(raw: bool) -> None:
    """Show the credentials in use for MLFLOW_TRACKING_URI.

    The token itself is printed only with --raw:

    \b
        curl -H "Authorization: Bearer $(mlflow-iap token --raw)" $MLFLOW_TRACKING_URI/version
    """
    from ..errors import IAPError
    from ..iap.auth import IAPAuth

    try:
        credentials = IAPAuth(os.environ.get("MLFLOW_TRACKING_URI", "")).credentials
        if raw:
            click.echo(credentials.token())
        else:
            print_rows(credentials.describe())
    except IAPError as error:
        raise click.ClickException(error.message) from None
