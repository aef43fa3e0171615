"""Delivers to an MLflow server in memory in the thread that waits, without threads or pauses."""

from __future__ import annotations

import time

from fake_mlflow import FakeMlflow, FakeRun
from mlflow_iap_callbacks.outbox import Outbox
from virtual_process import VirtualClock, VirtualProcess


class InlineDelivery(VirtualProcess):
    """What is logged with ``client`` reaches ``server`` during a wait for it, such as ``flush``.

    Args:
        has_files: whether the journal is on disk, which artifacts need.
    """

    def __init__(self, *, has_files: bool = False) -> None:
        self.server = FakeMlflow()
        self.clock = VirtualClock()
        self.clock.jump(time.time() - self.clock.time())  # trials begin and end in real time
        super().__init__(self.server, self.clock)
        if not has_files:
            self.sender._own = Outbox(None, self.server.uri)

    def runs(self) -> list[FakeRun]:
        """The runs in MLflow once everything is delivered, in order of creation."""
        assert self.sender.flush(60.0)
        return [run for run in self.server.runs.values() if not run.is_deleted]

    def run(self) -> FakeRun:
        """The only run."""
        (run,) = self.runs()
        return run
