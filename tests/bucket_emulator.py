"""Google Cloud Storage on this machine, as a child process that keeps its objects in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import requests

from conftest import wait_until
from ports import free_port


class BucketEmulator:
    """One bucket, by `gcp-storage-emulator`.

    Args:
        folder: for the objects and the log; kept at the end.
        bucket: its name.
    """

    def __init__(self, folder: Path, bucket: str = "mlflow-artifacts") -> None:
        self._folder = folder
        self.bucket = bucket

    @property
    def environment(self) -> dict[str, str]:
        """The variables of what is to use it."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def __enter__(self) -> BucketEmulator:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "gcp_storage_emulator", "-d", str(self._folder)]
        command += ["start", "--host", "127.0.0.1", "--port", str(port)]
        with (self._folder / "bucket.log").open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--default-bucket", self.bucket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._answers, "the bucket")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def names(self) -> list[str]:
        """The objects' names."""
        url = f"{self.url}/storage/v1/b/{self.bucket}/o"
        return [item["name"] for item in requests.get(url, timeout=10).json().get("items", [])]

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/storage/v1/b/{self.bucket}", timeout=5).ok
        except requests.ConnectionError:
            return False
