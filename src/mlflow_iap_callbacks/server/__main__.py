"""``python -m mlflow_iap_callbacks.server``: what the image runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .start_error import StartError


@click.group()
def main() -> None:
    """MLflow behind Identity-Aware Proxy, by the variables that appengine/README.md lists."""


@main.command()
@click.option(
    "--migrate/--no-migrate",
    "is_to_migrate",
    envvar="MLFLOW_SERVER_MIGRATE",
    help="Bring an older schema up first, instead of refusing it.  [default: no-migrate]",
)
def serve(is_to_migrate: bool) -> None:
    """Wait for the database, check what is needed, become `mlflow server`."""
    from . import start

    with _plainly():
        start.serve(os.environ, is_to_migrate=is_to_migrate)


@main.command()
def migrate() -> None:
    """Bring the database's schema to this MLflow's. Back it up first."""
    from . import start

    with _plainly():
        is_changed = start.migrate(os.environ)
    click.echo("The schema is migrated." if is_changed else "The schema is current.")


@main.command()
def check() -> None:
    """Do all that `serve` does before it serves, and tell what was found."""
    from . import start

    with _plainly():
        for line in start.check(os.environ):
            click.echo(line)


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
