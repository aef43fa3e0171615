"""A lock on a file that the operating system releases when its process dies."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """A lock that is held from its creation until ``release`` or the end of the process.

    Args:
        path: path of the file.
        create: create the file, readable by its owner only, if it does not exist.

    Raises:
        BlockingIOError: another process, or another object in this one, holds it.
        OSError: the file cannot be created or opened.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        try:
            _try_lock(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise BlockingIOError(error.errno, f"{path} is locked") from None

    def write(self, content: bytes) -> None:
        """Replace the beginning of the file."""
        with suppress(OSError):  # the lock is held anyway
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, content)

    def release(self) -> None:
        """Release the lock. After a fork, parent and child must both release it."""
        os.close(self._descriptor)
