"""Delivery to an MLflow server in memory, by the thread that waits for it: no thread, no pause."""

from __future__ import annotations

import time

from fake_mlflow import FakeMlflow, FakeRun
from mlflow_iap_callbacks.outbox import Outbox
from virtual_process import VirtualClock, VirtualProcess


class InlineDelivery(VirtualProcess):
    """What is logged with ``client`` reaches ``server`` when it is waited for, by ``flush`` say.

    Args:
        has_files: whether the journal is on disk, as artifacts need it.
    """

    def __init__(self, *, has_files: bool = False) -> None:
        self.server = FakeMlflow()
        self.clock = VirtualClock()
        self.clock.jump(time.time() - self.clock.time())  # trials begin and end in real time
        super().__init__(self.server, self.clock)
        if not has_files:
            self.sender._own = Outbox(None, self.server.uri)

    def runs(self) -> list[FakeRun]:
        """What MLflow holds once all is delivered, in the order of creation."""
        assert self.sender.flush(60.0)
        return [run for run in self.server.runs.values() if not run.is_deleted]

    def run(self) -> FakeRun:
        """The only run."""
        (run,) = self.runs()
        return run
