"""``mlflow-iap doctor``: finds out why requests to MLflow fail, and what to do."""

from __future__ import annotations

import os
import sys

import click

from .console import print_rows, with_commands_apart


@click.command()
@click.argument("url", required=False)
def doctor(url: str | None) -> None:
    """Check the connection to a server step by step.

    URL is the server. Default: MLFLOW_TRACKING_URI.

    It starts with the environment variables and ends with a request to MLflow's API. It stops at
    the first problem and says how to solve it.
    """
    from .doctor_steps import examine

    for finding in examine(url or os.environ.get("MLFLOW_TRACKING_URI", "")):
        mark = "[green]ok[/]" if finding.is_good else "[red]no[/]"
        print_rows({finding.step: with_commands_apart(finding.saw)}, mark)
    if not finding.is_good:
        sys.exit(1)
