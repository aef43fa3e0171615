"""Faults around a sweep, at random moments."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.faults import FaultKind

# A response is lost before or after the server's work, is cut, or has another status.
_FAULTS: Mapping[FaultKind, tuple[int, ...]] = {
    "answer": (503, 500),
    "answer_after": (502, 504),
    "reset_before": (0,),
    "reset_after": (0,),
    "reset_midway": (0,),
}


class Killable(Protocol):
    """A server that keeps its port and its data."""

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class Chaos:
    """Threads that cause faults until their block ends, and none afterwards.

    Args:
        cloud: the cloud in front of the server.
        seed: seed of the random moments.
        lost: share of responses that are lost.
    """

    def __init__(self, cloud: LocalCloud, seed: int, *, lost: float = 0.2) -> None:
        self.kills = 0
        self.revocations = 0
        self.seconds_without_role = 0.0
        self._cloud = cloud
        self._lost = lost
        self._seed = seed
        self._over = threading.Event()
        self._errors: list[Exception] = []
        self._threads = ExitStack()

    def __enter__(self) -> Chaos:
        kinds = [(kind, status) for kind, numbers in _FAULTS.items() for status in numbers]
        # Each affects requests that the earlier ones have let pass.
        rate = 1 - (1 - self._lost) ** (1 / len(kinds))
        for number, (kind, status) in enumerate(kinds):
            self._cloud.fault_rate(kind, rate, seed=self._seed + number, status=status or 503)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads.close()
        self._cloud.clear_faults()
        assert not self._errors, self._errors

    @property
    def has_failed(self) -> bool:
        """Whether one of its threads has failed, so that the others can stop."""
        return bool(self._errors)

    def start(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        """Run a function in a thread, which is joined at the end of the block at the latest."""

        def run() -> None:
            try:
                target(*arguments)
            except Exception as error:  # noqa: BLE001 - raised again where the block ends
                self._errors.append(error)
                self._over.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.callback(thread.join)
        return thread

    def wait(self, seconds: float) -> bool:
        """Wait; return False if the block has ended."""
        return not self._over.wait(seconds)

    def revoke_tokens_every_second(self) -> None:
        while self.wait(0.1):
            self._cloud.revoke_tokens()  # ends with the second
            self.revocations += 1

    def kill(self, times: int, *victims: Killable) -> None:
        """Repeatedly kill some of the servers for a while, after they have run for a while.

        Args:
            times: how often.
            victims: the servers; each needs the earlier ones to start.
        """
        rng = random.Random(f"{self._seed} kills")
        while self.kills < times and self.wait(rng.uniform(1.0, 8.0)):
            killed = rng.sample(victims, rng.randint(1, len(victims)))
            for victim in killed:
                victim.kill()
            self.kills += 1
            self.wait(rng.uniform(0.0, 1.0))
            for victim in sorted(killed, key=victims.index):
                victim.restart()

    def withdraw_the_role(self, after: float, seconds: float) -> None:
        self.wait(after)
        began = time.monotonic()
        self._cloud.members.discard(self._cloud.trainer)
        self.wait(seconds)
        self._cloud.members.add(self._cloud.trainer)
        self.seconds_without_role = time.monotonic() - began
