"""The deployment of `appengine/README.md` on this machine, which `make server` starts."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import database_server
from bucket_emulator import BucketEmulator
from database_server import LOGGED_MARIADB, DatabaseServer
from deployed_server import PASSWORD, DeployedServer, begin, set_up, settings
from mlflow_iap_callbacks.cli.local import use
from mlflow_iap_callbacks.local import LocalCloud
from ports import free_port

PROGRAM = __file__
_ENTRYPOINT = Path(__file__).parents[2] / "appengine" / "entrypoint.sh"
SERVER_ACCOUNT = "mlflow-server@local-project.iam.gserviceaccount.com"
_SECRET = "projects/local-project/secrets/mlflow-database"
_LONGEST_MIGRATION = 120.0


class Deployment:
    """A database in place of Cloud SQL, a bucket, the local cloud, and the server behind its IAP.

        with Deployment(tmp_path) as deployment:
            os.environ.update(deployment.cloud.environment())

    The server gets from the cloud only what its service account may have: the database's password
    from Secret Manager, and the keys of IAP's assertions.

    Args:
        folder: where all data and logs are stored; they remain at the end.
        python: Python of the environment that serves. Default: this one.
        program: the program that gets the server's commands. Default: the image's entrypoint.
        is_durable: whether commits survive a kill of the database; they then take longer.
        backend: the kind of database. Default: MariaDB.

    Attributes:
        backend: the server with MLflow's tables, in `database`.
        bucket: the bucket for the artifacts.
        cloud: the local cloud, with IAP in front of the server.
        server: the server behind its gate.
        url: the server's own URL, which bypasses IAP.
    """

    def __init__(
        self,
        folder: Path,
        python: Path = Path(sys.executable),
        *,
        is_durable: bool = False,
        program: Sequence[str] = ("sh", str(_ENTRYPOINT)),
        backend: Callable[..., DatabaseServer] = LOGGED_MARIADB,
    ) -> None:
        self._folder = folder
        self._program = program
        # Not resolved, because an environment's Python is a link to one outside of it.
        self._python = python.absolute()
        self.backend = backend(folder, is_durable=is_durable)
        self.bucket = BucketEmulator(folder)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.cloud = LocalCloud(self.url)
        self._stack = ExitStack()

    def __enter__(self) -> Deployment:
        with ExitStack() as stack:
            for part in (self.backend, self.bucket, self.cloud):
                stack.enter_context(part)
            set_up(self.backend)
            self.database = self.backend.new_database_for("mlflow")
            self.cloud.secrets[_SECRET] = PASSWORD
            self.cloud.secret_readers = {SERVER_ACCOUNT}
            variables = self._variables()
            self.server = DeployedServer(self._folder, variables, self._program, self._port)
            migration = begin("migrate", variables, self.server.log, self._program)
            stack.callback(migration.kill)
            assert migration.wait(_LONGEST_MIGRATION) == 0, self.server.log.read_text()
            stack.enter_context(self.server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def new_cloud(self, **options: Any) -> LocalCloud:
        """Return another IAP in front of the server, not started, with `LocalCloud`'s options."""
        cloud = LocalCloud(self.url, **options)
        cloud.assertion_keys = self.cloud.assertion_keys
        return cloud

    def _variables(self) -> dict[str, str]:
        given = settings(self.backend, self.database, f"gs://{self.bucket.bucket}/artifacts")
        del given["MLFLOW_SERVER_DATABASE_PASSWORD"]
        is_another = self._python != Path(sys.executable)
        return {
            **given,
            **self.bucket.environment,
            **self.cloud.google_environment(),
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.cloud.key_file(SERVER_ACCOUNT)),
            "MLFLOW_SERVER_DATABASE_PASSWORD_SECRET": f"{_SECRET}/versions/latest",
            # The keys come from Google's own address, which is redirected to this machine too.
            "MLFLOW_IAP_AUDIENCE": self.cloud.server_environment()["MLFLOW_IAP_AUDIENCE"],
            # Each test may have its own IAP.
            "MLFLOW_SERVER_HOSTS": "127.0.0.1:*,localhost:*",
            "PATH": f"{self._python.parent}:{os.defpath}",
            **({"PYTHONPATH": ""} if is_another else {}),
        }


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=sys.executable,
    help="Of the environment that serves. Default: this one.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(python: Path, command: Sequence[str]) -> None:
    """Start MLflow as it is deployed: MariaDB, a bucket, the gate, and IAP with its 32 MB limit.

    Print the variables to export and serve until Ctrl-C. With -- COMMAND, run it with these
    variables and exit with its status. Listen only on loopback addresses, and keep no data.
    """
    if not database_server.is_installed():
        raise click.ClickException(
            "The deployment's database is MariaDB, which is not installed here: install it by "
            "`apt-get install mariadb-server`."
        )
    # SIGTERM acts like Ctrl-C, so that everything always ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-iap-"))
        with console.status("starting MariaDB, a bucket and the server"):
            deployment = stack.enter_context(Deployment(Path(folder), python))
        console.print(_told(deployment, python))
        status = use(deployment.cloud, command)
    sys.exit(status)


def _told(deployment: Deployment, python: Path) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    backend, bucket = deployment.backend, deployment.bucket
    table.add_row("server", f"{deployment.url} by {python}")
    table.add_row("its log", str(deployment.server.log))
    table.add_row("database", f"{deployment.database} at {backend.socket}")
    table.add_row("bucket", f"gs://{bucket.bucket} at {bucket.url}")
    return table


if __name__ == "__main__":
    main()
