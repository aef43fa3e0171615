"""The command ``mlflow-iap`` and the list of its subcommands."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

import click

from .doctor import doctor
from .local import local
from .proxy import proxy
from .status import status
from .sync import sync
from .token import token


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-iap-callbacks")
def main() -> None:
    """Work with MLflow behind Google's Identity-Aware Proxy (IAP)."""
    # The encoding of a pipe or terminal may lack characters of a path or a message.
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # `os.dup2` may have put a pipe in the place of a file
            sys.stdout.reconfigure(errors="backslashreplace")


for command in (token, doctor, status, sync, proxy, local):
    main.add_command(command)
