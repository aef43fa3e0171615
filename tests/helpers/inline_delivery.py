"""Delivery to an MLflow server in memory, by the thread that waits for it: no thread, no pause."""

from __future__ import annotations

import threading
import time

from fake_mlflow import FakeClient, FakeMlflow, FakeRun
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.delivery.clock import Clock
from mlflow_iap_callbacks.delivery.sender import Sender
from mlflow_iap_callbacks.outbox import Outbox


class InlineDelivery(Clock):
    """What is logged with ``client`` reaches ``server`` when it is waited for, by ``flush`` say.

    Args:
        has_files: whether the journal is on disk, as artifacts need it.
    """

    def __init__(self, *, has_files: bool = False) -> None:
        self.server = FakeMlflow()
        self.client = FakeClient(self.server)
        self._seconds = 0.0
        self.sender = Sender(self.client, self.server.uri, clock=self, max_threads=0)
        if not has_files:
            self.sender._own = Outbox(None, self.server.uri)
        lifecycle._senders[self.server.uri] = self.sender

    def monotonic(self) -> float:
        return self._seconds

    def time(self) -> float:
        return time.time() + self._seconds

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        if not self.sender.deliver_next():
            self._seconds += seconds

    def runs(self) -> list[FakeRun]:
        """What MLflow holds once all is delivered, in the order of creation."""
        assert self.sender.flush(60.0)
        return [run for run in self.server.runs.values() if not run.is_deleted]

    def run(self) -> FakeRun:
        """The only run."""
        (run,) = self.runs()
        return run
