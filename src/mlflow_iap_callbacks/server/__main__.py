"""``python -m mlflow_iap_callbacks.server``, the command that the image runs."""

from __future__ import annotations

import os

import click


@click.group()
def main() -> None:
    """MLflow behind Identity-Aware Proxy, configured by the variables in appengine/README.md."""


@main.command()
@click.option(
    "--migrate/--no-migrate",
    "must_migrate",
    envvar="MLFLOW_SERVER_MIGRATE",
    help="Migrate an older schema first, instead of exiting with an error.  [default: no-migrate]",
)
def serve(must_migrate: bool) -> None:
    """Wait for the database, check the configuration, and run `mlflow server`."""
    from . import start

    start.serve(os.environ, must_migrate=must_migrate)


@main.command()
def migrate() -> None:
    """Migrate the database's schema to this version of MLflow. Back it up first."""
    from . import start

    is_changed = start.migrate(os.environ)
    click.echo("The schema has been migrated." if is_changed else "The schema is up to date.")


@main.command()
@click.option(
    "--older-than",
    metavar="TIME",
    default="30d",
    show_default=True,
    help="How long ago they must have been deleted, such as 30d or 12h30m.",
)
def gc(older_than: str) -> None:
    """Delete for good, with their artifacts, what users have deleted: runs, experiments, models.

    Before that, MLflow can restore them. The age of an experiment is counted from its last change.
    """
    from . import start

    start.delete_garbage(os.environ, older_than)


@main.command()
@click.argument("old")
@click.option(
    "--domain",
    required=True,
    help="What follows the @ for users whose names are not e-mail addresses.",
)
def move_users(old: str, domain: str) -> None:
    """Copy the users and permissions of a server with `--app-name basic-auth`.

    OLD is the URL of its database of users, such as sqlite:///basic_auth.db, whose tables are
    migrated.
    """
    from . import start

    for email in start.move_users(os.environ, old, domain):
        click.echo(email)


@main.command()
def check() -> None:
    """Run the checks of `serve`, and print what they found."""
    from . import start

    for line in start.check(os.environ):
        click.echo(line)


if __name__ == "__main__":
    main()
