"""Decides when each run is delivered: which one is due, and how long to wait after a failure.

It uses no threads and no clock: the sender passes the time, in monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..limits import MAX_ENTITIES
from ..outbox import Outbox, QueuedRun
from .refusals import NotYet

# A record waits for more records of its run, to be sent with them in one request. It waits for a
# tenth of the run's age, but for at least 5 and at most 60 seconds. That is short enough to watch
# training, and long enough for a server with many training jobs.
_MIN_WAIT, _MAX_WAIT = 5.0, 60.0
_MAX_PAUSE = 30.0  # maximum seconds between two requests to an unreachable server
# Seconds after which records of a training run are sent without pauses, because someone may be
# watching it.
_LONGEST_DELAY = 30.0
# A server is unreachable if it has not answered for this many seconds, or for twice the time of its
# slowest recent answer if that is longer.
_SILENCE = 20.0
# If more runs than this are scheduled, ended runs stay on disk until there is room.
_MAX_TURNS = 1000


@dataclass(eq=False)
class Turn:
    """A run in the schedule.

    Args:
        run: the run.
        since: when it was added to the schedule.
        due: when its records have waited long enough; infinite if none is waiting.
        not_before: the end of the pause after a failure, or of the one that training needs.
        behind_since: when its first pause for training began, if not all was delivered since then.
        entities: number of waiting metrics, params and tags.
        is_busy: whether it is being delivered.
        failures: how often its delivery has failed since it last succeeded.
        tried_at: when its last delivery began.
        failed_at: when its delivery last failed.
        asked_at: when the current request was sent; infinite for an upload, which has no time
            limit.
        is_refusal_reported: whether a warning has said that MLflow rejected records of the run.
        is_aside: whether its only record was set aside, so that the rest of its run does not wait.
        is_overtaken: whether it waits for what another journal's records of its run may contain.
    """

    run: QueuedRun
    since: float
    due: float = math.inf
    not_before: float = 0.0
    entities: int = 0
    is_busy: bool = False
    failures: int = 0
    tried_at: float = 0.0
    failed_at: float = 0.0
    asked_at: float = math.inf
    is_refusal_reported: bool = False
    is_aside: bool = False
    is_overtaken: bool = False
    behind_since: float | None = None


def seconds_aside(failures: int) -> float:
    """Return the seconds until a record that was set aside is retried: 10, doubled up to 600."""
    return min(5.0 * 2.0**failures, 600.0)


class Schedule:
    """The turns of all runs, and whether the server is reachable."""

    def __init__(self) -> None:
        self.has_more = False  # whether runs on disk may have no turn yet
        self.away_since: float | None = None  # None while the server is reachable
        self._turns: dict[QueuedRun, Turn] = {}
        self._away_until = 0.0
        self._failures = 0
        self._last_success = 0.0
        self._slowest = 0.0  # slowest recent answer, in seconds

    @property
    def is_stuck(self) -> bool:
        """Whether all waiting records are only being retried.

        This is so if the server is unreachable, or if the delivery of each run has failed since a
        request last succeeded.
        """
        turns = self._unfinished()
        has_failed = bool(turns) and all(
            turn.failures and (turn.is_aside or turn.tried_at > self._last_success)
            for turn in turns
        )
        return self.away_since is not None or (has_failed and not self.has_more)

    @property
    def has_only_asides(self) -> bool:
        """Whether all waiting records were set aside."""
        turns = self._unfinished()
        return bool(turns) and all(turn.is_aside for turn in turns) and not self.has_more

    def _unfinished(self) -> list[Turn]:
        return [turn for turn in self._turns.values() if turn.is_busy or turn.due < math.inf]

    def add(self, run: QueuedRun, entities: int, now: float) -> None:
        """Note that this many metrics, params and tags were appended to the run."""
        turn = self._turns.setdefault(run, Turn(run, now))
        turn.entities += entities
        is_awaited = run.is_urgent and run.run_id is None
        is_due = run.is_ended or is_awaited or turn.entities >= MAX_ENTITIES
        wait = 0.0 if is_due else min(max(_MIN_WAIT, (now - turn.since) / 10), _MAX_WAIT)
        turn.due = min(turn.due, now + wait)
        if run.is_ended and not turn.failures:
            turn.not_before = 0.0  # its training needs no pause any more
        if run.is_ended and len(self._turns) > _MAX_TURNS and not turn.is_busy:
            del self._turns[run]
            self.has_more = True

    def load(self, outboxes: Iterable[Outbox], now: float) -> None:
        """Give turns to runs on disk that have none, as many as there is room for."""
        waiting = sum(turn.due < math.inf for turn in self._turns.values())
        if not self.has_more or waiting > _MAX_TURNS // 2:
            return
        self.has_more = False
        for outbox in outboxes:
            most = len(self._turns) + _MAX_TURNS // 2
            runs = outbox.runs(most)
            self.has_more |= len(runs) >= most
            for run in runs:
                if run not in self._turns and outbox.has_records(run):
                    self._turns[run] = Turn(run, now, due=0.0)

    def hurry(self, run: QueuedRun | None = None) -> None:
        """Make one run due now, or all runs, even after failures."""
        if run is not None:
            if run in self._turns:
                self._turns[run].due = 0.0
            return
        self._away_until = 0.0
        for turn in self._turns.values():
            turn.due = min(turn.due, 0.0)
            if not turn.is_aside:
                turn.not_before = 0.0

    def others(self, run: QueuedRun) -> list[Turn]:
        """Return the other turns of the same MLflow run in the same outbox."""
        return [
            turn
            for turn in self._turns.values()
            if turn.run is not run and turn.run.place == run.place and turn.run.outbox is run.outbox
        ]

    def add_aside(self, run: QueuedRun, now: float) -> None:
        """Note that a record was set aside, to be retried later."""
        self._turns[run] = Turn(run, now, due=now, failures=1, tried_at=now, is_aside=True)
        self._turns[run].not_before = now + seconds_aside(1)

    def take(self, now: float) -> Turn | None:
        """Return a turn that is due and mark it as busy; None if none is due."""
        turns = self._turns.values()
        # While the server is unreachable, only one request at a time checks whether it is back.
        is_tried = self.away_since is not None and any(turn.is_busy for turn in turns)
        if now < self._away_until or is_tried:
            return None
        busy = [turn for turn in turns if turn.is_busy]
        written = {(turn.run.outbox, turn.run.place) for turn in busy}
        # A run does not wait for an upload of its own that was set aside.
        blocked = {
            (turn.run.outbox, turn.run.place)
            for turn in busy
            if not turn.is_aside or turn.asked_at < math.inf
        }
        adopted = {
            (turn.run.place, turn.run.is_owned)
            for turn in turns
            if turn.run.is_adopted and not turn.is_overtaken
        }
        ready = [
            turn
            for turn in turns
            if max(turn.due, turn.not_before) <= now
            and not turn.is_busy
            and (turn.run.outbox, turn.run.place) not in (written if turn.is_aside else blocked)
            # A dead process's records of a run are sent before this process's records of it, unless
            # this process creates the run.
            and (
                turn.run.is_adopted
                or (turn.run.run_id is None and (turn.run.place, True) not in adopted)
                or adopted.isdisjoint({(turn.run.place, False), (turn.run.place, True)})
            )
        ]
        taken = min(ready, key=lambda turn: (turn.not_before, turn.due), default=None)
        if taken is not None:
            taken.is_busy, taken.due, taken.entities, taken.tried_at = True, math.inf, 0, now
            taken.asked_at = now
        return taken

    def seconds_to_next(self, now: float) -> float:
        """Return the seconds until another turn is due, if nothing changes first."""
        moments = (
            max(turn.due, turn.not_before, self._away_until) for turn in self._turns.values()
        )
        # Turns that are already due are left to other threads.
        return min((moment - now for moment in moments if moment > now), default=math.inf)

    def silence(self, now: float) -> float | None:
        """Check whether the server has just become unreachable, because it does not answer.

        The request is not cancelled. Until it ends, no other request is sent.

        Returns:
            For how many seconds the server has not answered; None if it is reachable, or was
            already unreachable.
        """
        asked_at = [turn.asked_at for turn in self._turns.values() if turn.is_busy]
        seconds = now - max(min(asked_at, default=math.inf), self._last_success)
        if self.away_since is not None or seconds < max(_SILENCE, 2 * self._slowest):
            return None
        self.away_since = now - seconds
        return seconds

    def succeeded(self, now: float, seconds: float = 0.0) -> float | None:
        """Note that a request succeeded.

        Args:
            now: monotonic seconds.
            seconds: how long the answer took.

        Returns:
            For how many seconds the server was unreachable; None if it was reachable.
        """
        self._slowest = max(seconds, 0.9 * self._slowest)
        away_since, self.away_since = self.away_since, None
        self._last_success, self._failures, self._away_until = now, 0, 0.0
        return None if away_since is None else now - away_since

    def ended(self, turn: Turn) -> bool:
        """Note that the turn's records were delivered; return whether the run has no new ones."""
        run, turn.is_busy, turn.failures, turn.is_overtaken = turn.run, False, 0, False
        is_done = turn.due == math.inf and not run.outbox.has_records(run)
        if is_done:
            turn.behind_since = None
        if is_done and (run.is_ended or not run.is_owned):
            self._turns.pop(run, None)
        return is_done

    def longest_pause(self, turn: Turn, now: float) -> float:
        """Return how long a turn may pause, so that training is not slowed down."""
        since = now if turn.behind_since is None else turn.behind_since
        return max(0.0, since + _LONGEST_DELAY - now)

    def pause(self, turn: Turn, now: float, seconds: float) -> None:
        """Let the records that a turn has left, and new ones of its run, wait."""
        if turn.run.outbox.has_records(turn.run):
            turn.due = min(turn.due, now)
            if turn.behind_since is None:
                turn.behind_since = now
        turn.not_before = now + seconds

    def failed(self, turn: Turn, error: Exception, now: float) -> Literal["run", "server"] | None:
        """Plan the next try after a failure.

        Returns:
            ``run`` or ``server`` if that has a problem which was not there before; otherwise None.
        """
        turn.is_busy = False
        turn.is_overtaken = isinstance(error, NotYet) and error.is_overtaken
        after = error.after if isinstance(error, NotYet) else None
        if after is None:
            turn.failures += 1
            after = min(2.0**turn.failures, _MAX_WAIT)
        turn.due, turn.not_before = min(turn.due, now), now + after
        if isinstance(error, NotYet):
            return None
        # If other runs were delivered meanwhile, the server is reachable.
        is_its_own = turn.failures > 1 and self._last_success > turn.failed_at
        turn.failed_at = now
        if is_its_own:
            return "run" if turn.failures == 2 else None
        self._failures += 1
        self._away_until = now + min(2.0**self._failures / 2, _MAX_PAUSE)
        if self.away_since is not None:
            return None
        self.away_since = now
        return "server"
