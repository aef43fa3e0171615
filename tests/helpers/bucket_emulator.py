"""Emulates Google Cloud Storage in a child process that keeps its objects in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import requests

from ports import free_port
from restartable import Restartable
from waiting import answers, wait_until


class BucketEmulator(Restartable):
    """One bucket of `gcp-storage-emulator`.

    Args:
        folder: where the objects and the log are stored; they remain at the end.
        bucket: its name.
    """

    def __init__(self, folder: Path, bucket: str = "mlflow-artifacts") -> None:
        self._folder = folder
        self._port = free_port()
        self.bucket = bucket
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a program that uses it."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def __enter__(self) -> BucketEmulator:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        command = [sys.executable, "-m", "gcp_storage_emulator", "-d", str(self._folder)]
        command += ["start", "--host", "127.0.0.1", "--port", str(self._port)]
        with (self._folder / "bucket.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--default-bucket", self.bucket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not reach it
            )
        try:
            wait_until(lambda: answers(f"{self.url}/storage/v1/b/{self.bucket}"), "the bucket")
        except BaseException:
            self.stop()
            raise

    def names(self) -> list[str]:
        """The objects' names."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """The objects' bytes, by name."""
        url = f"{self.url}/storage/v1/b/{self.bucket}/o"
        items = requests.get(url, timeout=10).json().get("items", [])
        return {item["name"]: int(item["size"]) for item in items}
