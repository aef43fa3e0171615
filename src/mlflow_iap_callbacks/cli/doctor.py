"""``mlflow-iap doctor``: finds out why requests to MLflow fail, and what to do."""

from __future__ import annotations

import os
import sys

import click

from .console import print_rows


@click.command()
def doctor() -> None:
    """Check the connection to MLFLOW_TRACKING_URI step by step.

    Start with the environment variables and end with a request to MLflow's API. Stop at the first
    problem and say how to solve it.
    """
    from .doctor_steps import examine

    for finding in examine(os.environ.get("MLFLOW_TRACKING_URI", "")):
        print_rows({finding.step: finding.saw}, "[green]ok[/]" if finding.is_good else "[red]no[/]")
    if not finding.is_good:
        sys.exit(1)
