"""Faults that a test orders, and which request each of them strikes."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

FaultKind = Literal[
    "answer", "answer_after", "reset_before", "reset_after", "reject_midway", "reset_midway"
]
Place = Literal["iap", "google"]

KINDS_AT: dict[Place, tuple[FaultKind, ...]] = {
    "iap": get_args(FaultKind),
    "google": ("answer", "answer_after", "reset_before", "reset_after"),
}


@dataclass
class Fault:
    """One ordered fault; `LocalCloud.fault` explains the fields."""

    kind: FaultKind
    path: str = ""
    method: str | None = None
    skip: int = 0
    times: int = 1
    status: int = 503
    retry_after: float | None = None
    body: str | None = None
    from_iap: bool = False
    where: Place = "iap"
    rate: float = 1.0
    seed: int = 0
    _random: random.Random = field(init=False, repr=False)
    _struck: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.where not in KINDS_AT:
            raise ValueError(f"where={self.where!r}: give one of {', '.join(KINDS_AT)}")
        if self.kind not in KINDS_AT[self.where]:
            known = ", ".join(KINDS_AT[self.where])
            raise ValueError(f"no fault {self.kind!r} at {self.where!r}: give one of {known}")
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable, not secret

    @property
    def spent(self) -> bool:
        return self.times > 0 and self._struck >= self.times

    def matches(self, method: str, path: str) -> bool:
        return self.path in path and self.method in (None, method)

    def strikes(self) -> bool:
        """Whether the matching request that has just come is struck; counts it."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._random.random() >= self.rate:
            return False
        self._struck += 1
        return True


class Faults:
    """The faults ordered so far, in the order in which they were ordered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def strike(
        self, where: Place, method: str, path: str, kinds: Collection[FaultKind]
    ) -> Fault | None:
        """Return the first fault of these kinds that strikes this request."""
        with self._lock:
            for fault in self._faults:
                if (
                    fault.where == where
                    and fault.kind in kinds
                    and not fault.spent
                    and fault.matches(method, path)
                    and fault.strikes()
                ):
                    return fault
        return None
