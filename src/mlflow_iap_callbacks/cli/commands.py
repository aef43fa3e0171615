"""The command ``mlflow-iap``."""

from __future__ import annotations

import click

from .access import doctor, token
from .journals import status, sync
from .local import local


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-iap-callbacks")
def main() -> None:
    """MLflow behind Google's Identity-Aware Proxy: try it here, look into it there."""


for command in (token, doctor, status, sync, local):
    main.add_command(command)
