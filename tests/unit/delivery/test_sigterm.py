"""SIGTERM in small processes, which import nothing but the module that handles it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mlflow_iap_callbacks.delivery import sigterm

_LOAD = f"""
import importlib.util, os, signal, sys, threading
spec = importlib.util.spec_from_file_location("sigterm", {str(Path(sigterm.__file__))!r})
sigterm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sigterm)

def deliver():
    print("delivered", threading.current_thread().name, flush=True)

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(20)
"""


def _run(program: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_a_process_delivers_and_then_ends_by_the_signal() -> None:
    status, printed = _run("sigterm.before_death(deliver); terminate()")
    assert (status, printed) == (-signal.SIGTERM, ["delivered mlflow-iap-sigterm"])


def test_a_handler_of_the_user_s_is_left_alone() -> None:
    status, printed = _run(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        sigterm.before_death(deliver)
        terminate()
        """
    )
    assert (status, printed) == (7, [])


def test_an_ignored_sigterm_stays_ignored() -> None:
    status, printed = _run(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sigterm.before_death(deliver)
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on")
        """
    )
    assert (status, printed) == (0, ["goes on"])


def test_a_thread_does_not_set_it_up() -> None:
    status, printed = _run(
        """
        thread = threading.Thread(target=sigterm.before_death, args=(deliver,))
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, [])


def test_it_is_set_up_once() -> None:
    status, printed = _run(
        """
        sigterm.before_death(deliver)
        sigterm.before_death(lambda: print("a second time", flush=True))
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, ["delivered mlflow-iap-sigterm"])


def test_the_wakeup_descriptor_of_an_event_loop_is_left_alone() -> None:
    status, printed = _run(
        """
        theirs = os.pipe()
        os.set_blocking(theirs[1], False)
        signal.set_wakeup_fd(theirs[1])
        sigterm.before_death(deliver)
        assert signal.set_wakeup_fd(theirs[1]) == theirs[1]
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, ["delivered mlflow-iap-sigterm"])


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
def test_a_forked_child_ends_at_once_and_its_parent_delivers_nothing() -> None:
    status, printed = _run(
        """
        sigterm.before_death(deliver)
        sigterm.hold_for_fork()
        pid = os.fork()
        if pid == 0:
            sigterm.forget_in_child()
            terminate()
        sigterm.go_on_after_fork()
        print(os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)
        """
    )
    assert (status, printed) == (0, [str(int(signal.SIGTERM))])
