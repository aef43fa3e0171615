"""Notices SIGTERM in a thread, no matter what the main thread is doing.

Python calls a signal handler in the main thread, after the C code that runs there has returned.
Training in C can take hours. In a worker of a process pool, a wait in C that begins just after
the signal may never end. See
https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers

If the program handles SIGTERM, its handler decides how the process ends. Otherwise the process
delivers its records, and is then killed by the signal, as it would be without this package.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from .thread_signals import start_without_signals

# Kubernetes and preemptible machines kill a process 30 s after SIGTERM.
SECONDS_TO_DELIVER = 10.0

# Seconds between two looks at what wakes the main thread.
_SECONDS_BETWEEN_LOOKS = 1.0

# `signal.getsignal` takes much longer than the function of `_signal` that it calls, and
# `signal.set_wakeup_fd` releases Python's global lock, which this thread may then get back only
# milliseconds later. `_c_handler` knows handlers of C libraries too, but calling it takes longer.
_c_handler = ctypes.pythonapi.PyOS_getsig
_c_handler.restype = ctypes.c_void_p
_NO_C_HANDLERS = (None, 1)  # SIG_DFL and SIG_IGN
_SIGTERM = int(signal.SIGTERM)

_pipe: tuple[int, int] | None = None
_next_look = 0.0
_blocked_before: set[int] = set()
_is_received = False


def listen(close: Callable[[], None], deliver: Callable[[], None]) -> None:
    """On SIGTERM, call one of two functions in a thread.

    It does nothing if it is not called in the main thread. Call it again whenever an event loop may
    have restored the default handler.

    Args:
        close: called once if SIGTERM has no other handler. The process is killed afterwards. A
            second SIGTERM kills it at once, unless the main thread is in C code.
        deliver: called in parallel with the user's own handler, no matter when it was installed.
    """
    global _pipe, _next_look
    now = time.monotonic()
    # Nearly always, because this is called for each trial.
    if _pipe and now < _next_look:
        is_own = _signal.getsignal(_SIGTERM) is _on_sigterm
        if is_own or _c_handler(_SIGTERM) not in _NO_C_HANDLERS:
            return
    if _is_received or threading.current_thread() is not threading.main_thread():
        return
    if sys.platform == "win32":  # no process receives it there
        return
    _next_look = now + _SECONDS_BETWEEN_LOOKS
    handler = signal.getsignal(signal.SIGTERM)
    if handler in (signal.SIG_IGN, None):
        return
    if _pipe is None:
        pipe = os.pipe()
        os.set_blocking(pipe[1], False)
        thread = threading.Thread(
            target=_wait, args=(pipe[0], close, deliver), name="mlflow-iap-sigterm", daemon=True
        )
        try:
            start_without_signals(thread)
        except RuntimeError:  # the interpreter is exiting
            for end in pipe:
                os.close(end)
            return
        _pipe = pipe
    if handler is signal.SIG_DFL and not _is_handled_in_c():
        signal.signal(signal.SIGTERM, _on_sigterm)
    other = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    if other not in (-1, _pipe[1]):  # an event loop's, which wakes the main thread itself
        signal.set_wakeup_fd(other)


def is_received() -> bool:
    """Return whether the process must end because of SIGTERM."""
    return _is_received


def die() -> None:
    """End the process as an unhandled SIGTERM does."""
    if sys.platform != "win32":
        # `signal.signal` restores the default only in the main thread, which may be in C for long.
        ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(128 + signal.SIGTERM)  # a shell's status for SIGTERM


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
    """Restore the default handler in a forked child, until the child calls ``listen``."""
    global _pipe, _is_received
    _is_received = False
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
    global _is_received
    # A handler that was installed later may call this one. Then that handler decides what happens.
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        _is_received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _pipe:
        with suppress(BlockingIOError):
            os.write(_pipe[1], bytes([number]))


def _is_handled_in_c() -> bool:
    """Whether a library has a handler unknown to Python, such as ``faulthandler.register``'s."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _wait(reading_end: int, close: Callable[[], None], deliver: Callable[[], None]) -> None:
    global _is_received
    while True:
        if os.read(reading_end, 1) != bytes([signal.SIGTERM]):
            continue
        if signal.getsignal(signal.SIGTERM) in (_on_sigterm, signal.SIG_DFL):
            break
        deliver()
    _is_received = True
    close()
    die()
