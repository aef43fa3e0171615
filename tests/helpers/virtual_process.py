"""Processes that deliver when a test says so, on a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.delivery.clock import Clock
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.delivery.sender import Sender


class VirtualClock(Clock):
    """A clock that stands still until it is moved or somebody waits.

    Attributes:
        meanwhile: called instead of waiting; returns True if something happened, so that no time
            passes.
        is_training: whether another thread keeps a processor busy.
        cpu_of_sender: processor time of the thread that delivers, in seconds.
    """

    def __init__(self) -> None:
        self.meanwhile: Callable[[], bool] = lambda: False
        self.is_training = False
        self.cpu_of_sender = 0.0
        self._now = 1000.0
        self._offset = 1_700_000_000.0

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + self._offset

    def process_time(self) -> float:
        return self.cpu_of_sender + (self._now if self.is_training else 0.0)

    def thread_time(self) -> float:
        return self.cpu_of_sender

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        if not self.meanwhile():
            self.advance(min(seconds, 0.5))

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock to another time."""
        self._offset += seconds


class VirtualProcess:
    """A process's own sender, which delivers in this thread when it is asked to.

    ``RunWriter`` and the callbacks use the sender of the process that was entered last.
    """

    def __init__(
        self,
        server: FakeMlflow,
        clock: VirtualClock,
        client_type: Callable[[FakeMlflow], MlflowClient] = FakeClient,
    ) -> None:
        self.client = client_type(server)
        self.sender = Sender(self.client, server.uri, clock=clock, max_threads=0)
        self.clock = clock
        self.enter()

    def enter(self) -> None:
        """Continue as this process."""
        lifecycle._senders.clear()
        lifecycle._senders[self.sender.server] = self.sender
        self.clock.meanwhile = self.sender.deliver_next

    def begin(self, experiment: str = "experiment", **given: Any) -> RunWriter:
        """Start a run of this process."""
        self.enter()
        return RunWriter(self.client, experiment, **given)

    def deliver(self) -> int:
        """Deliver everything that is due; return how many turns that took."""
        turns = 0
        while self.sender.deliver_next():
            turns += 1
        return turns

    def deliver_for(self, seconds: float) -> None:
        """Deliver what becomes due within this many seconds."""
        ends = self.clock.monotonic() + seconds
        self.deliver()
        while (now := self.clock.monotonic()) < ends:
            next_turn = self.sender._schedule.seconds_to_next(now)
            self.clock.advance(min(next_turn, 5.0, ends - now))
            self.deliver()

    def die(self) -> None:
        """End as with ``kill -9``: nothing more is written, and locks are released."""
        for outbox in self.sender.outboxes:
            outbox.intake.close()
            if outbox._db is not None:
                outbox._db.close()
            if outbox.file_lock is not None:
                outbox.file_lock.release()
        self.sender._own, self.sender._adopted = None, []
        self.close()

    def close(self) -> None:
        """Exit normally, without delivering more."""
        self.sender.close()
        lifecycle._senders.clear()
