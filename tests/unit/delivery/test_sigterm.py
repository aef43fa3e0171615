"""SIGTERM in small processes that import only the module that handles it."""

from __future__ import annotations

import signal
import sys
import textwrap

import pytest

import python_process
from fork_server import FOR_OUTBOXES
from python_process import PIPE

_LOAD = """
import os, signal, sys, threading
from mlflow_iap_callbacks.delivery import sigterm

def print(*words):  # in one piece, also while another thread prints
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def close():
    print("closed", threading.current_thread().name)

def deliver():
    print("delivered beside")
    is_delivered.set()

is_delivered = threading.Event()

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(20)
"""

_CLOSED = ["closed mlflow-iap-sigterm"]


def _run(program: str) -> tuple[int, list[str]]:
    code = _LOAD + textwrap.dedent(program)
    with python_process.start("-c", code, stdout=PIPE, modules=FOR_OUTBOXES) as process:
        assert process.stdout is not None
        printed = process.stdout.read().splitlines()
        return process.wait(30), printed


def test_a_process_delivers_and_then_ends_by_the_signal() -> None:
    status, printed = _run("sigterm.listen(close, deliver); terminate()")
    assert (status, printed) == (-signal.SIGTERM, _CLOSED)


def test_a_process_whose_main_thread_never_notices_the_signal_still_ends_by_it() -> None:
    status, printed = _run(
        """
        import hashlib
        sigterm.listen(close, deliver)
        kill = ["-c", f"import os; os.kill({os.getpid()}, {signal.SIGTERM})"]
        os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *kill])
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # stays in C for minutes
        """
    )
    assert (status, printed) == (-signal.SIGTERM, _CLOSED)


_HANDLERS = {
    "exits": "lambda *_: sys.exit(7)",
    "exits after it has saved": "lambda *_: (is_delivered.wait(20), sys.exit(7))",
    "stops gracefully": "lambda *_: is_stopped.set()",
    "calls the previous one": "lambda *it: (callable(before) and before(*it), is_stopped.set())",
}


@pytest.mark.parametrize("is_later", [True, False])
@pytest.mark.parametrize("handler", _HANDLERS)
def test_a_handler_of_the_user_decides_how_the_process_ends(handler: str, is_later: bool) -> None:
    status, printed = _run(
        f"""
        is_stopped = threading.Event()
        if {is_later}:
            sigterm.listen(close, deliver)
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, {_HANDLERS[handler]})
        sigterm.listen(close, deliver)
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopped.wait(20)
        assert is_delivered.wait(20)
        print("ends as it wants to")
        sys.exit(0)
        """
    )
    assert "closed mlflow-iap-sigterm" not in printed
    if handler == "exits":
        assert status == 7
    elif handler == "exits after it has saved":
        assert (status, printed) == (7, ["delivered beside"])
    else:
        assert status == 0
        assert {"delivered beside", "ends as it wants to"} == set(printed)


def test_a_handler_that_restores_the_previous_one_and_repeats_the_signal_ends_the_process() -> None:
    status, printed = _run(
        """
        sigterm.listen(close, deliver)
        before = signal.getsignal(signal.SIGTERM)
        def handler(*_):
            assert is_delivered.wait(20)
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, handler)
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, ["delivered beside", *_CLOSED])


def test_a_handler_is_called_each_time() -> None:
    status, printed = _run(
        """
        sigterm.listen(close, deliver)
        calls = []
        signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
        for _ in range(2):
            is_delivered.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_delivered.wait(20)
        print(len(calls))
        """
    )
    assert (status, printed) == (0, ["delivered beside", "delivered beside", "2"])


_LOOP = """
import asyncio

async def take_sigterm_and_give_it_back():
    loop = asyncio.get_running_loop()
    taken = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, taken.set)
    sigterm.listen(close, deliver)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(taken.wait(), 20)
    print("the loop has it")
    loop.remove_signal_handler(signal.SIGTERM)
"""


@pytest.mark.parametrize("is_later", [True, False])
def test_it_listens_again_after_an_event_loop_used_sigterm(is_later: bool) -> None:
    status, printed = _run(
        _LOOP
        + f"""
if {is_later}:
    sigterm.listen(close, deliver)
asyncio.run(take_sigterm_and_give_it_back())
sigterm.listen(close, deliver)
terminate()
"""
    )
    assert status == -signal.SIGTERM
    assert [text for text in printed if text != "delivered beside"] == ["the loop has it", *_CLOSED]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("chain", [False, True])
def test_a_handler_in_c_decides_how_the_process_ends(order: str, chain: bool) -> None:
    status, printed = _run(
        f"""
        import faulthandler, tempfile
        stacks = tempfile.TemporaryFile()
        register = lambda: faulthandler.register(signal.SIGTERM, file=stacks, chain={chain})
        if {order!r} == "before":
            register()
        sigterm.listen(close, deliver)
        if {order!r} == "after":
            register()
        os.kill(os.getpid(), signal.SIGTERM)
        stacks.seek(0)
        print("stacks" if b"most recent call first" in stacks.read() else "none")
        if {chain}:
            threading.Event().wait(20)
        """
    )
    if not chain:
        assert (status, printed) == (0, ["stacks"])
    elif order == "before":  # faulthandler restores the default, and repeats the signal
        assert (status, printed) == (-signal.SIGTERM, [])
    else:
        assert status == -signal.SIGTERM
        assert _CLOSED[0] in printed


def test_a_second_sigterm_kills_at_once() -> None:
    status, printed = _run(
        """
        def close():
            print("closing")
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(20)
            print("closed")
        sigterm.listen(close, deliver)
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, ["closing"])


def test_it_does_not_listen_again_after_sigterm() -> None:
    status, printed = _run(
        """
        is_listening = threading.Event()
        def close():
            is_listening.wait(20)
            print("closed")
        sigterm.listen(close, deliver)
        os.kill(os.getpid(), signal.SIGTERM)
        assert sigterm.is_received()
        sigterm.listen(close, deliver)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        is_listening.set()
        threading.Event().wait(20)
        """
    )
    assert (status, printed) == (-signal.SIGTERM, ["closed"])


@pytest.mark.skipif(sys.platform == "win32", reason="Signals cannot be blocked.")
def test_a_signal_that_the_program_waits_for_does_not_end_it() -> None:
    status, printed = _run(
        """
        sigterm.listen(close, deliver)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            os.kill(os.getpid(), number)
            print(signal.sigwait([number]).name)
        """
    )
    assert (status, printed) == (0, ["SIGUSR1", "SIGTERM"])


def test_another_wakeup_descriptor_set_later_does_not_disable_it() -> None:
    status, printed = _run(
        """
        sigterm.listen(close, deliver)
        theirs = os.pipe()
        os.set_blocking(theirs[1], False)
        signal.set_wakeup_fd(theirs[1])
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, _CLOSED)


def test_a_wakeup_descriptor_that_was_given_back_is_used_again_after_a_second() -> None:
    status, printed = _run(
        """
        import hashlib
        sigterm.listen(close, deliver)
        signal.set_wakeup_fd(-1)
        sigterm._next_look -= sigterm._SECONDS_BETWEEN_LOOKS
        sigterm.listen(close, deliver)
        kill = ["-c", f"import os; os.kill({os.getpid()}, {signal.SIGTERM})"]
        os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *kill])
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # stays in C for minutes
        """
    )
    assert (status, printed) == (-signal.SIGTERM, _CLOSED)


def test_an_ignored_sigterm_stays_ignored() -> None:
    status, printed = _run(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sigterm.listen(close, deliver)
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on")
        """
    )
    assert (status, printed) == (0, ["goes on"])


def test_it_is_not_set_up_in_a_thread() -> None:
    status, printed = _run(
        """
        thread = threading.Thread(target=sigterm.listen, args=(close, deliver))
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
        sigterm.listen(close, deliver)
        sigterm.listen(lambda: print("a second time"), deliver)
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, _CLOSED)


def test_the_wakeup_descriptor_of_an_event_loop_is_kept() -> None:
    status, printed = _run(
        """
        theirs = os.pipe()
        os.set_blocking(theirs[1], False)
        signal.set_wakeup_fd(theirs[1])
        sigterm.listen(close, deliver)
        assert signal.set_wakeup_fd(theirs[1]) == theirs[1]
        terminate()
        """
    )
    assert (status, printed) == (-signal.SIGTERM, _CLOSED)


_FORK = """
sigterm.listen(close, deliver)
sigterm.hold_for_fork()
pid = os.fork()
if pid == 0:
    sigterm.forget_in_child()
    IN_CHILD
    terminate()
sigterm.go_on_after_fork()
status = os.waitpid(pid, 0)[1]
print(os.WTERMSIG(status) or os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
@pytest.mark.parametrize(
    ("in_child", "wanted"),
    [
        ("pass", ["15"]),
        ("sigterm.listen(close, deliver)", [*_CLOSED, "15"]),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(7))", ["7"]),
    ],
)
def test_a_forked_child_ends_by_itself_and_its_parent_delivers_nothing(
    in_child: str, wanted: list[str]
) -> None:
    status, printed = _run(_FORK.replace("IN_CHILD", in_child))
    assert (status, printed) == (0, wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="There is no fork.")
def test_a_handler_that_was_chained_before_a_fork_also_decides_in_the_child() -> None:
    status, printed = _run(
        """
        sigterm.listen(close, deliver)
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *given: (before(*given), os._exit(7)))
        """
        + textwrap.indent(_FORK.replace("IN_CHILD", "pass"), " " * 8)
    )
    assert (status, printed) == (0, ["7"])
