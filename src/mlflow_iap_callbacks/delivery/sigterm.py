"""SIGTERM, noticed by a thread, no matter what the main thread is doing.

Python calls a handler in the main thread, once that returns from C. A training in C may take long,
and a wait in C that begins just after the signal may take forever, as in a pool's worker:
https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

# Kubernetes and preemptible machines kill a process 30 s after SIGTERM.
SECONDS_TO_DELIVER = 10.0

_pipe: tuple[int, int] | None = None
_blocked_before: set[int] = set()


def before_death(call: Callable[[], None]) -> None:
    """Call ``call`` in a thread at SIGTERM, before the process is killed by it.

    This works once, in the main thread, and only if SIGTERM has no handler. A second SIGTERM kills
    the process at once, unless the main thread is in C then.
    """
    global _pipe
    is_main = threading.current_thread() is threading.main_thread()
    if _pipe or not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    if sys.platform == "win32":  # no process receives it there
        return
    _pipe = os.pipe()
    os.set_blocking(_pipe[1], False)
    signal.signal(signal.SIGTERM, _on_sigterm)
    other = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    if other != -1:  # of an event loop, which wakes the main thread itself
        signal.set_wakeup_fd(other)
    threading.Thread(
        target=_wait, args=(_pipe[0], call), name="mlflow-iap-sigterm", daemon=True
    ).start()


def hold_for_fork() -> None:
    """Block SIGTERM during a fork, so that the child does not write to the shared pipe."""
    global _blocked_before
    if _pipe:
        _blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def go_on_after_fork() -> None:
    """Undo ``hold_for_fork``."""
    if _pipe:
        signal.pthread_sigmask(signal.SIG_SETMASK, _blocked_before)


def forget_in_child() -> None:
    """Restore the default SIGTERM in a forked child, until the child calls ``before_death``."""
    global _pipe
    if _pipe:
        if signal.getsignal(signal.SIGTERM) is _on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        other = signal.set_wakeup_fd(-1)
        if other not in (-1, _pipe[1]):
            signal.set_wakeup_fd(other)
        for end in _pipe:
            os.close(end)
        go_on_after_fork()
        _pipe = None


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _pipe:
        os.write(_pipe[1], bytes([number]))


def _wait(told: int, call: Callable[[], None]) -> None:
    while os.read(told, 1) != bytes([signal.SIGTERM]):
        pass
    call()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(128 + signal.SIGTERM)  # the status in a shell: the main thread is still in C
