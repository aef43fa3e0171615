"""Runs MySQL itself as a child process: this machine's, or Debian sid's, unpacked into a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
import pytest
from packaging.version import Version

from database_server import MySQLServer, as_root, path
from deployed_server import set_up
from server_database import PINNED

_OLDEST = 8  # major version
_HERE = ("mysqld", "--no-defaults")


def is_installed() -> bool:
    """Whether this machine has a version of MySQL that Cloud SQL offers."""
    mysqld = shutil.which("mysqld", path=path())
    if mysqld is None:
        return False
    told = subprocess.run([mysqld, "--version"], capture_output=True, text=True)
    version = re.search(
        r"Ver (\d+)[\d.]+ ", told.stdout
    )  # MariaDB's output continues after the number
    return version is not None and int(version[1]) >= _OLDEST


def can_be_fetched() -> bool:
    """Whether Debian's packages can be unpacked."""
    return os.geteuid() == 0 and shutil.which("mmdebstrap") is not None


needs_mysql = pytest.mark.skipif(
    not (is_installed() or can_be_fetched()) or Version(mlflow.__version__) < Version(PINNED),
    reason=f"needs MySQL {_OLDEST} or later, or root and Debian's mmdebstrap to fetch it; "
    f"and MLflow {PINNED} as in the image",
)


@pytest.fixture(scope="module")
def mysql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySQL]:
    with tempfile.TemporaryDirectory(prefix="mlflow-iap-mysql-") as packages:
        program = _HERE if is_installed() else fetch(Path(packages))
        with MySQL(tmp_path_factory.mktemp("mysql"), program) as server:
            set_up(server)
            yield server


class MySQL(MySQLServer):
    """MySQL with binary logging and durable commits, which are its defaults.

    Args:
        folder: as for `DatabaseServer`.
        program: the command that starts it, with its first options.
    """

    collation = "utf8mb4_0900_bin"

    def __init__(self, folder: Path, program: Sequence[str]) -> None:
        super().__init__(folder)
        self._program = program

    def preparation(self) -> list[str]:
        return [*self._program, *self._options(), "--initialize-insecure"]

    def command(self) -> list[str]:
        only_socket = (f"--socket={self.socket}", "--skip-networking", "--mysqlx=OFF")
        return [*self._program, *self._options(), *only_socket]

    def _options(self) -> list[str]:
        # The folder from which it would import files does not exist.
        return [f"--datadir={self.folder / 'data'}", "--secure-file-priv=NULL", *as_root()]


def fetch(folder: Path) -> list[str]:
    """Unpack Debian sid's packages into a folder; return the command that starts the server."""
    packages = folder / "packages.tar"
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=extract"),
            # A mirror may be more than a week old, for which sid's lists are valid.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            *("--include=mysql-server-core", "sid", str(packages)),
        ],
        check=True,
    )
    subprocess.run(["tar", "-xf", packages, "-C", folder, "./usr"], check=True)
    packages.unlink()
    (loader,) = folder.glob("usr/lib*/ld-linux*.so.*")
    (libraries,) = folder.glob("usr/lib/*-linux-gnu")
    mysqld = [str(loader), "--library-path", str(libraries), str(folder / "usr/sbin/mysqld")]
    return [*mysqld, "--no-defaults", f"--basedir={folder / 'usr'}"]
