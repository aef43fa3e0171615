"""This process's senders, one for each server: from first use to exit, fork or SIGTERM."""

from __future__ import annotations

import atexit
import importlib
import logging
import math
import multiprocessing
import multiprocessing.util
import netrc  # noqa: F401
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from urllib.parse import urlsplit, urlunsplit

# MLflow and requests import these at a first request; a fork must not come upon that half done.
import mlflow.tracking.request_header.registry  # noqa: F401
from mlflow import MlflowClient
from rich.console import Console
from rich.progress import Progress

from . import sigterm
from .sender import Sender

_logger = logging.getLogger(__name__)

# At exit; and at SIGTERM, after which Kubernetes and preemptible machines leave 30 seconds.
_AT_EXIT, _AT_SIGTERM = 30.0, 10.0
# A server that was away when the process ended is not waited for so long.
_IF_AWAY = 5.0
_SECONDS_ALONE = 1.0  # without a bar

_senders: dict[str, Sender] = {}
LOCK = threading.RLock()  # around what a fork must not come upon half done
_draining = threading.Lock()
# What a fork leaves of the parent's: SQLite's connections must not even be closed in the child.
_left_to_parent: list[Sender] = []
_is_set_up = False
# Called with the seconds that are left before the end, so that what is known last is logged.
before_drain: list[Callable[[float], None]] = []


def sender_for(client: MlflowClient) -> Sender:
    """The process's one sender for the client's server, which delivers with the last client given.

    Its first call in the main thread makes SIGTERM drain, where SIGTERM had no handler.
    """
    global _is_set_up
    server = lasting_uri(client.tracking_uri)
    with LOCK:
        _set_up()
        _is_set_up = True
        sender = _senders.get(server)
        if sender is None:
            sender = _senders[server] = Sender(client, server)
        sender.use(client)
        return sender


def lasting_uri(uri: str) -> str:
    """A tracking URI as journals have it: without password, and independent of where it is read."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}"
    return uri if parts.scheme else os.path.abspath(uri)


def drain(seconds: float = _AT_EXIT) -> None:
    """Deliver for so many seconds, tell what is left, and let go of the journals."""
    with _draining:
        ends = time.monotonic() + seconds
        with suppress(KeyboardInterrupt):
            for log_last in before_drain:
                log_last(seconds)
        with LOCK:
            senders = list(_senders.values())
        with suppress(KeyboardInterrupt):
            for sender in senders:
                if not sender.outboxes:
                    continue
                sender.end_open_runs()
                sender.adopt_safely()
                _flush(sender, ends - time.monotonic())
        for sender in senders:
            _tell(sender)
            with LOCK:
                _senders.pop(sender.server, None)
            sender.close()


def flush_with_bar(sender: Sender, console: Console) -> Iterator[None]:
    """Deliver all that waits, on a terminal with a bar once it takes a second; yields meanwhile."""
    # What others go on logging meanwhile would be no end of it.
    upto, total, began = sender.marks(), sender.waiting, time.monotonic()
    with ExitStack() as stack:
        bar = None
        while not sender.flush(0.2, upto):
            if bar is None and console.is_terminal and time.monotonic() - began > _SECONDS_ALONE:
                # Without a thread of its own, which could not be started when the process ends.
                bar = stack.enter_context(
                    Progress(console=console, transient=True, auto_refresh=False)
                )
                task = bar.add_task(f"sending to {sender.server}")
            if bar is not None:
                total = max(total, sender.waiting)
                bar.update(task, total=total, completed=total - sender.waiting, refresh=True)
            yield


def _flush(sender: Sender, seconds: float) -> None:
    ends = time.monotonic() + seconds
    away_ends = math.inf
    for _ in flush_with_bar(sender, Console(file=sys.stderr)):
        if sender.is_away:
            away_ends = min(away_ends, time.monotonic() + _IF_AWAY)
        if time.monotonic() > min(ends, away_ends):
            return


def _tell(sender: Sender) -> None:
    volatile = sum(outbox.volatile for outbox in sender.outboxes)
    lost = volatile + sum(outbox.intake.lost for outbox in sender.outboxes)
    on_disk = sender.waiting - volatile
    if on_disk:
        _logger.warning(
            "%d records for %s stay on disk. `mlflow-iap sync` sends them, or the next process on "
            "this machine that logs to it.",
            on_disk,
            sender.server,
        )
    if lost:
        _logger.warning("%d records for %s were in memory only and are lost.", lost, sender.server)


def _set_up() -> None:
    if not _is_set_up and multiprocessing.parent_process() is not None:
        # Such a child ends without atexit.
        multiprocessing.util.Finalize(None, drain, exitpriority=10)
    sigterm.before_death(partial(drain, _AT_SIGTERM))


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
    # What a thread of the parent's was importing would stay locked here for ever, and MLflow tries
    # some imports at each request. There is no public way to let go of these locks.
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
