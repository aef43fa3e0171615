"""This process's senders, one per server, from their first use to exit, fork or SIGTERM."""

from __future__ import annotations

import atexit
import importlib
import logging
import multiprocessing
import multiprocessing.util
import netrc  # noqa: F401
import os
import threading
from collections.abc import Sequence
from functools import partial

# MLflow and Requests would import these at their first request. No fork may happen during that.
import mlflow.tracking.request_header.registry  # noqa: F401
from mlflow import MlflowClient

from . import closing, sigterm
from .clock import Clock
from .closing import Deadline, Work, report_rest
from .flush_result import IAPFlushResult, result_of
from .sender import Sender
from .server_uri import server_uri

_logger = logging.getLogger("mlflow_iap_callbacks")

_SECONDS_AT_EXIT = 30.0
_SECONDS_TO_ADOPT_AT_EXIT = 5.0

_senders: dict[str, Sender] = {}
LOCK = threading.RLock()  # held wherever a fork must not happen
_exiting = threading.Lock()
_exit_deadline: Deadline | None = None
# A forked child keeps its parent's senders: it must not close their SQLite connections.
_left_to_parent: list[Sender] = []
_is_set_up = False
_has_exited = False  # other functions that are called at exit, and daemon threads, may still log
# What the callbacks do when the process exits. They end runs, and after all records are delivered,
# they log what is missing in MLflow and draw plots.
end_at_exit: list[Work] = []
draw_at_exit: list[Work] = []


def sender_for(client: MlflowClient) -> Sender:
    """Return this process's sender for the client's server. From now on, it uses this client.

    If this is called in the main thread, the process also delivers on SIGTERM.
    """
    global _is_set_up
    server = server_uri(client.tracking_uri)
    with LOCK:
        _set_up()
        _is_set_up = True
        sender = _senders.get(server)
        if sender is None:
            sender = _senders[server] = Sender(client, server)
            if _has_exited:
                _logger.warning(
                    "The process is exiting and sends nothing more to %s, so what it logs from now "
                    "on stays on disk. `mlflow-iap sync` sends it; so does the next process on "
                    "this machine that logs to that server.",
                    server,
                )
        if sender.client is not client:
            sender.use(client)
        return sender


def flush(client: MlflowClient, timeout: float | None) -> IAPFlushResult:
    """Deliver everything that this process logged to the client's server; see ``closing.flush``."""
    sender = sender_for(client)
    return result_of(sender, is_delivered=closing.flush(sender, timeout))


def close(
    client: MlflowClient, seconds: float, *, end: Work | None = None, draw: Work | None = None
) -> IAPFlushResult:
    """End runs, deliver and draw plots, within a time limit. The process can continue afterwards.

    Args:
        client: a client of the server.
        seconds: the time limit.
        end: logs what is known only at the end, and ends runs, if there is anything to do.
        draw: logs plots, if there are any.

    Returns:
        What was delivered.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C. A warning says how many records stay on disk.
    """
    sender = sender_for(client)
    deadline = Deadline(sender.clock.monotonic, seconds)
    is_delivered = closing.close(
        [sender], deadline, end=filter(None, [end]), draw=filter(None, [draw])
    )
    return result_of(sender, is_delivered=is_delivered)


def exit_interpreter() -> None:
    """Call ``exit_process``. Afterwards, a warning says that nothing more is delivered."""
    global _has_exited
    exit_process()
    _has_exited = True


def exit_process(seconds: float = _SECONDS_AT_EXIT) -> None:
    """End all runs, deliver for up to ``seconds``, report what is left and close the journals."""
    if _exit_deadline is not None:  # SIGTERM may arrive while the main thread is already here
        _exit_deadline.shorten(seconds)
    if _exiting.acquire(timeout=seconds):
        try:
            _exit(seconds)
        finally:
            _exiting.release()
    if sigterm.is_received() and threading.current_thread() is threading.main_thread():
        sigterm.die()


def _exit(seconds: float) -> None:
    global _exit_deadline
    # LOCK is not acquired, because a thread that waits for a study's storage may hold it.
    senders = list(_senders.values())
    clock = senders[0].clock if senders else Clock()
    # The user has interrupted the delivery of the same records, and knows that they stay on disk.
    interrupted = [sender for sender in senders if sender.interrupted_at == sender.marks()]
    if senders and interrupted == senders:
        seconds = 0.0
    deadline = _exit_deadline = Deadline(clock.monotonic, seconds)
    end: list[Work] = [*end_at_exit, partial(_end_runs, senders), partial(_adopt, senders)]
    draw: list[Work] = [*draw_at_exit, partial(_end_runs, senders)]
    is_reported = False
    try:
        closing.close(senders, deadline, end=end, draw=draw)
    except KeyboardInterrupt:
        is_reported = True
    for sender in senders:
        if not is_reported and sender not in interrupted:
            report_rest(sender)
        _senders.pop(sender.server, None)
        sender.close()
    _exit_deadline = None


def _end_runs(senders: Sequence[Sender], _: Deadline) -> None:
    for sender in senders:
        sender.end_open_runs()


def _adopt(senders: Sequence[Sender], deadline: Deadline) -> None:
    for sender in senders:
        if sender.outboxes:
            sender.adopt_safely(min(deadline.left, _SECONDS_TO_ADOPT_AT_EXIT))


def _set_up() -> None:
    if not _is_set_up and multiprocessing.parent_process() is not None:
        # Children of multiprocessing exit without calling atexit.
        multiprocessing.util.Finalize(None, exit_process, exitpriority=10)
    sigterm.listen(_exit_on_sigterm, _deliver_during_handler)


def _exit_on_sigterm() -> None:
    exit_process(sigterm.SECONDS_TO_DELIVER)


def _deliver_during_handler() -> None:
    """Deliver what was logged so far. The user's own handler decides how the process ends."""
    with LOCK:
        senders = list(_senders.values())
    for sender in senders:
        sender.flush(sigterm.SECONDS_TO_DELIVER)


def _before_fork() -> None:
    LOCK.acquire()
    sigterm.hold_for_fork()
    for sender in _senders.values():
        sender.stop_for_fork()


def _after_fork_in_parent() -> None:
    for sender in _senders.values():
        sender.go_on_after_fork()
    sigterm.go_on_after_fork()
    LOCK.release()


def _after_fork_in_child() -> None:
    global _exiting, _exit_deadline, _is_set_up, _has_exited
    _exiting, _exit_deadline = threading.Lock(), None
    _is_set_up = _has_exited = False
    sigterm.forget_in_child()
    for sender in _senders.values():
        sender.leave_to_parent()
        _left_to_parent.append(sender)
    _senders.clear()
    # A module that another thread was importing at the fork would stay locked forever, and MLflow
    # imports some at each request. There is no public way to release these locks.
    for name in ("_module_locks", "_blocking_on"):
        getattr(importlib._bootstrap, name, {}).clear()
    LOCK.release()


atexit.register(exit_interpreter)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
