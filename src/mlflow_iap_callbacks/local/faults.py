"""Faults that tests inject, and how the affected requests are chosen."""

from __future__ import annotations

import random
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
    """A fault; `LocalCloud.fault` documents the fields."""

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
    _hits: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.where not in KINDS_AT:
            raise ValueError(f"where={self.where!r}: give one of {', '.join(KINDS_AT)}")
        if self.kind not in KINDS_AT[self.where]:
            known = ", ".join(KINDS_AT[self.where])
            raise ValueError(f"no fault {self.kind!r} at {self.where!r}: give one of {known}")
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable, not secret

    def matches(self, method: str, path: str) -> bool:
        is_left = self.times == 0 or self._hits < self.times
        return is_left and self.path in path and self.method in (None, method)

    def hits(self) -> bool:
        """Count a matching request, and return whether the fault affects it."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._random.random() >= self.rate:
            return False
        self._hits += 1
        return True


class Faults(list[Fault]):
    """The injected faults, oldest first. Any thread may change them; one thread calls `find`."""

    def find(
        self, where: Place, method: str, path: str, kinds: Collection[FaultKind]
    ) -> Fault | None:
        """Return the first fault of these kinds that affects this request, if any."""
        for fault in list(self):
            if (
                fault.where == where
                and fault.kind in kinds
                and fault.matches(method, path)
                and fault.hits()
            ):
                return fault
        return None
