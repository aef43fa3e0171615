"""The signals that this package's threads leave to the program."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from mlflow_iap_callbacks.delivery.thread_signals import start_without_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Signals cannot be blocked.")


def test_a_thread_gets_no_signal_but_those_of_its_own_faults() -> None:
    blocked: set[int] = set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    thread = threading.Thread(
        target=lambda: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    )
    start_without_signals(thread)
    thread.join()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP} <= blocked
    assert not {signal.SIGSEGV, signal.SIGFPE} & blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_thread_that_cannot_be_started_leaves_the_signals_as_they_were() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    thread = threading.Thread(target=int)
    thread.start()
    with pytest.raises(RuntimeError):
        start_without_signals(thread)  # a second time
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
