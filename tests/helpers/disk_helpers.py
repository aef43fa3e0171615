"""Problems with files: a full disk, and damaged bytes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_LIMITS = resource.getrlimit(resource.RLIMIT_FSIZE)
JUNK = {
    "zeros": bytes(64),
    "no MessagePack": b"\xc1",
    "no text": b"\xa1\xff",
    "too short a message": b"\x92\x01\x02",
    "a message of numbers": b"\x93\x01\x02\x03",
    "the beginning of a message": b"\x93\x01",
    "the beginning of a long text": b"\xdb\x00\xff\xff\xff",
}


def limit_files(size: int) -> None:
    """Limit the size of files that this process writes; only in a test marked ``forked``."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, _LIMITS[1]))


def free_files() -> None:
    """Remove the limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, _LIMITS)


class Disk:
    """A disk that gets full: a small one if this user may mount it, otherwise a limit.

    The limit applies to the process, so such tests run in a child, because the runner writes too.
    """

    KINDS = ("small", pytest.param("limited", marks=pytest.mark.forked))

    def __init__(self, folder: Path, *, is_small: bool) -> None:
        self.folder = folder
        self._ballast = folder / "ballast" if is_small else None

    def fill(self) -> None:
        if self._ballast is None:
            limit_files(0)
            return
        with suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))

    def free(self) -> None:
        if self._ballast is None:
            free_files()
        else:
            self._ballast.unlink(missing_ok=True)

    @classmethod
    @contextmanager
    def of_kind(cls, kind: str, folder: Path) -> Iterator[Disk]:
        folder.mkdir()
        if kind == "limited":
            yield cls(folder, is_small=False)
            return
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this user cannot mount a disk")
        try:
            yield cls(folder, is_small=True)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
