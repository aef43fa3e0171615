"""The image, built with its Dockerfile on a stand-in for its base, and run as on App Engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from bucket_emulator import BucketEmulator
from database_server import MariaDB
from deployed_server import HOST, application_folder, settings
from ports import free_port
from server_database import mariadb, needs_mariadb
from waiting import answers, wait_until

_TOOLS = ("buildah", "mmdebstrap")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    needs_mariadb,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, _TOOLS)),
        reason="needs root, and Debian's buildah and mmdebstrap",
    ),
]
__all__ = ["mariadb"]

_PREPARE = Path(__file__).parents[2] / "appengine" / "prepare"
_IMAGE = "localhost/mlflow-server"
_BASE = "localhost/python-stand-in"


class Buildah:
    """Images and containers in a separate folder.

    Args:
        folder: where they are stored.
    """

    def __init__(self, folder: Path) -> None:
        policy = folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        # The other storage driver leaves a mount behind.
        self._places = ["--storage-driver", "vfs"]
        self._places += ["--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self._unsigned = ["--signature-policy", str(policy)]

    def __call__(self, command: str, *arguments: str) -> str:
        done = subprocess.run(self.command(command, *arguments), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def command(self, command: str, *arguments: str) -> list[str]:
        pulls = self._unsigned if command in ("from", "commit", "build") else []
        apart = ["--isolation", "chroot"] if command in ("run", "build") else []
        return ["buildah", *self._places, command, *pulls, *apart, *arguments]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    """Podman with the built image."""
    folder = tmp_path_factory.mktemp("buildah")
    made = Buildah(folder)
    debian = ["--variant=minbase", "--include=python3-venv,python-is-python3,ca-certificates"]
    base = str(folder / "base.tar")
    subprocess.run(["mmdebstrap", "--quiet", "--mode=root", *debian, "trixie", base], check=True)
    container = made("from", "scratch")
    made("add", "-q", container, base, "/")
    made("commit", "-q", container, _BASE)
    subprocess.run(
        [str(_PREPARE), "my-project", "123456789012", "us-central1", "uc"],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
    )
    context = str(_PREPARE.parents[1] / "build" / "appengine")
    # This machine's certificate authorities, because its package index may need them.
    trusted = ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    made(
        *("build", "--pull-never", "--format", "docker", "--build-arg", f"PYTHON={_BASE}"),
        *(*trusted, "-t", _IMAGE, context),
    )
    return made


@pytest.fixture
def container(buildah: Buildah) -> Iterator[str]:
    name = buildah("from", "--pull-never", _IMAGE)
    yield name
    buildah("rm", name)


def test_the_image_has_byte_code_and_no_build_tools_and_runs_without_privileges(
    buildah: Buildah, container: str
) -> None:
    assert buildah("run", container, "--", "id", "-u") == "10001"
    find = "find /opt/mlflow -path '*/mlflow/server/__pycache__/__init__*.pyc'"
    assert buildah("run", container, "--", "sh", "-c", find)
    tools = "for tool in gcc cc make; do command -v $tool; done; true"
    assert buildah("run", container, "--", "sh", "-c", tools) == ""


def test_the_image_serves_with_a_socket_and_a_bucket(
    buildah: Buildah, container: str, mariadb: MariaDB, tmp_path: Path
) -> None:
    port = str(free_port())
    with BucketEmulator(tmp_path) as bucket:
        given = {
            **settings(mariadb, mariadb.new_database_for("mlflow"), f"gs://{bucket.bucket}/a"),
            **bucket.environment,
            "MLFLOW_SERVER_MIGRATE": "true",
            "MLFLOW_SERVER_DATABASE_SOCKET": f"/cloudsql/{Path(mariadb.socket).name}",
            "PORT": port,
            "PYTHONPATH": "/application",
        }
        sockets = f"{Path(mariadb.socket).parent}:/cloudsql"
        application = application_folder(tmp_path, "mlflow.server.fastapi_app:app")
        mounts = [f"--volume={sockets}", f"--volume={application}:/application:ro"]
        entrypoint = ["sh", "/entrypoint.sh", "serve"]
        command = [*mounts, *options(given), container, "--", *entrypoint]
        with (tmp_path / "log").open("wb") as log:
            running = subprocess.Popen(buildah.command("run", *command), stdout=log, stderr=log)
        try:
            health = f"http://127.0.0.1:{port}/health"
            wait_until(lambda: answers(health) or running.poll() is not None, "the image", 120)
            assert running.poll() is None, (tmp_path / "log").read_text()
            put = f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/a.txt"
            requests.put(put, b"kept", headers={"Host": HOST}, timeout=30).raise_for_status()
            assert bucket.names() == ["a/1/r/artifacts/a.txt"]
        finally:
            running.terminate()
            running.wait(30)


def options(variables: Mapping[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in variables.items()]
