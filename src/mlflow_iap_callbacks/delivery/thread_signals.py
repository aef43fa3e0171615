"""Threads that leave all signals to the program."""

from __future__ import annotations

import signal
import sys
import threading

# The kernel sends these to the thread at fault, where faulthandler reports them.
_OF_FAULTS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}


def start_without_signals(thread: threading.Thread) -> None:
    """Start a thread to which no signal is delivered.

    A program may block a signal in its own threads, to wait for it. If another thread got the
    signal, it would end the process.

    Raises:
        RuntimeError: the interpreter is exiting.
    """
    if sys.platform == "win32":
        thread.start()
        return
    blocked = {n for n in signal.valid_signals() if getattr(n, "name", "") not in _OF_FAULTS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # inherited by the thread
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
