"""This process's senders, one for each server, from the first use to exit, fork or SIGTERM."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import multiprocessing.util
import netrc  # noqa: F401
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

# MLflow and requests import these at their first request; a fork must not happen meanwhile.
import mlflow.tracking.request_header.registry  # noqa: F401
from mlflow import MlflowClient

from . import sigterm
from .closing import deliver_last, report_rest
from .sender import Sender
from .server_uri import server_uri

_SECONDS_AT_EXIT = 30.0

_senders: dict[str, Sender] = {}
LOCK = threading.RLock()  # held wherever a fork must not happen
_draining = threading.Lock()
# A forked child keeps its parent's senders: it must not even close their SQLite connections.
_left_to_parent: list[Sender] = []
_is_set_up = False
# Called with the seconds that are left, to log what is known only at the end.
before_drain: list[Callable[[float], None]] = []


def sender_for(client: MlflowClient) -> Sender:
    """Return this process's sender for the client's server. It delivers with the latest client.

    Its first call in the main thread makes SIGTERM drain, where SIGTERM had no handler.
    """
    global _is_set_up
    server = server_uri(client.tracking_uri)
    with LOCK:
        _set_up()
        _is_set_up = True
        sender = _senders.get(server)
        if sender is None:
            sender = _senders[server] = Sender(client, server)
        sender.use(client)
        return sender


def drain(seconds: float = _SECONDS_AT_EXIT) -> None:
    """Deliver for up to ``seconds``, report what is left, and close the journals."""
    with _draining:
        began = time.monotonic()
        with suppress(KeyboardInterrupt):
            for log_last in before_drain:
                log_last(seconds)
        with LOCK:
            senders = list(_senders.values())
        deliver_last(senders, seconds - (time.monotonic() - began))
        for sender in senders:
            report_rest(sender)
            with LOCK:
                _senders.pop(sender.server, None)
            sender.close()


def _set_up() -> None:
    if not _is_set_up and multiprocessing.parent_process() is not None:
        # Children of multiprocessing exit without calling atexit.
        multiprocessing.util.Finalize(None, drain, exitpriority=10)
    sigterm.before_death(partial(drain, sigterm.SECONDS_TO_DELIVER))


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
    global _draining, _is_set_up
    _draining, _is_set_up = threading.Lock(), False
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


atexit.register(drain)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
