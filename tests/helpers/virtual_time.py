"""Time that passes only when somebody waits."""

from __future__ import annotations

from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy


class VirtualTime:
    """A clock on which waiting takes no time.

    Attributes:
        now: the time that it shows, in seconds.
        waits: length of each wait.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def policy(self, max_attempts: int = 12, deadline: float = 120.0) -> RetryPolicy:
        """A retry policy with this clock."""
        functions = {"clock": staticmethod(self.clock), "sleep": staticmethod(self.sleep)}
        policy: RetryPolicy = type("VirtualPolicy", (RetryPolicy,), functions)(
            max_attempts, deadline
        )
        return policy
