"""When what an outbox holds is delivered: in the background, by a few threads."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from mlflow import MlflowClient

from ..iap.retry import RetryPolicy
from ..outbox import Outbox, QueuedRun, Refusal
from ..outbox.journals import new_outbox, orphans
from .mlflow_calls import MlflowCalls
from .refusals import NotYet

_logger = logging.getLogger(__name__)

# Requests at once: at a delay of 250 ms they deliver ten short trials a second.
_MOST_THREADS = 8
# One looks for what is due while another is at work.
_MOST_IDLE_THREADS = 2
_FULL_BATCH = 1000
# Seconds that records wait for others to join them: a tenth of the run's age. Soon enough to watch
# a training, seldom enough for a server that has many trainings to serve.
_SHORTEST_WAIT, _LONGEST_WAIT = 5.0, 60.0
# Of one request, retries included; a server that does not answer for so long is told as away.
_PATIENT = RetryPolicy(deadline=20.0)
_LONGEST_PAUSE = 30.0
# What a training appends wakes nobody: that would cost it more than the append.
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_ADOPTIONS = 60.0
# Ended runs above this number are known to the disk only, until their turn comes.
_MOST_TURNS = 1000

Marks = list[tuple[Outbox, int]]  # with sequence numbers


@dataclass(eq=False)
class _Turn:
    """When a run is delivered next; in monotonic seconds."""

    run: QueuedRun
    since: float
    due: float = math.inf
    not_before: float = 0.0
    entities: int = 0
    is_busy: bool = False
    failures: int = 0
    tried_at: float = 0.0
    failed_at: float = 0.0
    is_refusal_told: bool = False


class Sender:
    """Delivers what is appended to this process's outbox, and what dead processes left in theirs:
    in order per run, several runs at once, until the server has taken or refused it.

    Args:
        client: what to deliver with.
        server: URI that the server's journals are known by.
    """

    def __init__(self, client: MlflowClient, server: str) -> None:
        self.server = server
        self._calls = MlflowCalls(client)
        self._own: Outbox | None = None
        self._adopted: list[Outbox] = []
        self._opening = threading.Lock()
        self._next_adoption = 0.0
        self._turns: dict[QueuedRun, _Turn] = {}
        self._begun: list[QueuedRun] = []
        # By experiment and key.
        self._open: WeakValueDictionary[tuple[str, str], QueuedRun] = WeakValueDictionary()
        self._has_more = False  # runs that have no turn yet
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._is_closed = False
        self._away_since: float | None = None
        self._away_until = 0.0
        self._failures = 0
        self._last_success = 0.0
        self.delivered = 0  # records

    def use(self, client: MlflowClient) -> None:
        """Deliver with this client from now on."""
        self._calls.client = client

    @property
    def outbox(self) -> Outbox:
        """This process's own."""
        if self._own is None:
            with self._opening:
                self._own = self._own or new_outbox(self.server)
        return self._own

    @property
    def outboxes(self) -> list[Outbox]:
        """All that it delivers from."""
        return [*([] if self._own is None else [self._own]), *self._adopted]

    @property
    def waiting(self) -> int:
        """Records that are not delivered yet."""
        return sum(outbox.waiting for outbox in self.outboxes)

    @property
    def is_away(self) -> bool:
        """Whether the server could not be written to when it was tried last."""
        return self._away_since is not None

    @property
    def is_stuck(self) -> bool:
        """Whether what waits is only being tried again: the server is away, or all has failed
        since something was delivered."""
        with self._changed:
            turns = [t for t in self._turns.values() if t.is_busy or t.due < math.inf]
            has_failed = bool(turns) and all(
                turn.failures and turn.tried_at > self._last_success for turn in turns
            )
            return self.is_away or (has_failed and not self._has_more)

    def begin(self, key: str, experiment: str) -> QueuedRun:
        """A run of this process's, to be written to by the outbox's intake; first its ``start``."""
        return self._begin(key, experiment, is_owned=True, run_id=None)

    def join(self, key: str, experiment: str, run_id: str | None) -> QueuedRun:
        """A run that another process began, or that was ended."""
        known = self._open.get((experiment, key))
        if known is not None and not known.is_ended and known.outbox.intake.is_open:
            return known  # all copies of a handle are one writer
        run = self._begin(key, experiment, is_owned=False, run_id=run_id)
        content = {"key": key, "experiment": experiment, "run_id": run_id}
        run.outbox.intake.append(run.number, "join", content)
        return run

    def marks(self) -> Marks:
        """How far was appended so far."""
        return [(outbox, outbox.last_seq) for outbox in self.outboxes]

    def flush(self, timeout: float | None, upto: Marks | None = None) -> bool:
        """Deliver all that was appended.

        Args:
            timeout: seconds; None for as long as it takes.
            upto: where that ends. Default: now.

        Returns:
            Whether all of it was delivered, or refused by MLflow for good.
        """
        ends = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            upto = self.marks() if upto is None else upto
            self._collect()
            self._hurry()
            while any(outbox.holds(seq) for outbox, seq in upto):
                left = ends - time.monotonic()
                if left <= 0 or self._is_closed:
                    return False
                self._changed.wait(min(left, 1.0))
        return True

    def run_id(self, run: QueuedRun, timeout: float | None) -> str | None:
        """MLflow's id of the run, waited for; None if it is not known in time, or never will be.

        Args:
            run: of this process's outbox.
            timeout: seconds; None for as long as it takes.
        """
        ends = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._collect()
            if run.run_id is None and run in self._turns:
                self._turns[run].due = 0.0
                self._wake()
            while run.run_id is None and run.refused is None and not self._is_closed:
                left = ends - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
        return run.run_id

    def end_open_runs(self) -> None:
        """End what runs of this process were not finished: as they said, or as failed."""
        if self._own is not None:
            _end_open_runs(self._own, "The process ended before the run was finished.", time.time())
            self._load_more()

    def adopt(self, *, refused: bool = False) -> None:
        """Take over what dead processes left for this server; their open runs end as failed.

        Args:
            refused: whether to try what MLflow refused once more.
        """
        with self._opening:
            for outbox in orphans(self.server):
                if refused:
                    outbox.requeue_refused()
                _end_open_runs(outbox, "The process that wrote to the run died.", outbox.died)
                if outbox.waiting:
                    self._adopted.append(outbox)
                else:
                    outbox.close()
        self._load_more()

    def adopt_safely(self) -> None:
        """As ``adopt``; what goes wrong is told, for no delivery is to fail by what others left."""
        try:
            self.adopt()
        except Exception as error:  # noqa: BLE001
            _logger.warning("What dead processes left could not be taken over: %s", error)

    def close(self) -> None:
        """Deliver no more; what waits stays on disk."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        with self._opening:
            for outbox in self.outboxes:
                outbox.close()
            self._own, self._adopted = None, []

    def stop_for_fork(self) -> None:
        """Keep this process's threads out of SQLite, whose locks would stay taken in a child."""
        self._opening.acquire()
        for outbox in self.outboxes:
            outbox.stop_for_fork()

    def go_on_after_fork(self) -> None:
        """As before ``stop_for_fork``; in the parent."""
        for outbox in self.outboxes:
            outbox.go_on_after_fork()
        self._opening.release()

    def leave_to_parent(self) -> None:
        """In a forked child: what waits is the parent's to deliver."""
        for outbox in self.outboxes:
            outbox.leave_to_parent()

    # From here on in the background, or with self._changed held.

    def _wake(self) -> None:
        """Let a thread look at what is due: an idle one, or one more where all are at work."""
        if self._idle:
            self._changed.notify()
        elif self._threads < _MOST_THREADS:
            thread = threading.Thread(target=self._work, name="mlflow-iap-sender", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends
                return
            self._threads += 1

    def _hurry(self) -> None:
        self._away_until = 0.0
        for turn in self._turns.values():
            turn.due, turn.not_before = min(turn.due, 0.0), 0.0
        self._wake()

    def _load_more(self) -> None:
        with self._changed:
            self._has_more = True
            self._wake()

    def _begin(self, key: str, experiment: str, *, is_owned: bool, run_id: str | None) -> QueuedRun:
        run = self.outbox.begin(key, experiment, is_owned=is_owned, run_id=run_id)
        self._begun.append(run)
        self._open[experiment, key] = run
        if not self._threads:
            with self._changed:
                self._wake()
        return run

    def _work(self) -> None:
        is_needed = True
        while is_needed:
            try:
                self._adopt_now_and_then()
                is_needed = self._take_turn()
                self._tidy()
            except Exception:  # a fault of ours; what waits is on disk, and goes on waiting
                _logger.exception("The delivery to %s failed, and goes on.", self.server)
                with self._changed:
                    self._changed.wait(_LONGEST_PAUSE)
        with self._changed:
            self._threads -= 1

    def _take_turn(self) -> bool:
        """Deliver the run that is due, or wait for one; whether this thread is still needed."""
        with self._changed:
            self._collect()
            turn = self._next()
            if self._is_closed or (turn is None and self._idle >= _MOST_IDLE_THREADS):
                return False
            if turn is None:
                self._idle += 1
                self._changed.wait(self._seconds_to_next())
                self._idle -= 1
                return True
            turn.is_busy, turn.due, turn.entities = True, math.inf, 0
            turn.tried_at = time.monotonic()
            self._wake()
        error = self._deliver(turn)
        with self._changed:
            turn.is_busy = False
            if error is None:
                self._after_delivery(turn)
            else:
                self._after_failure(turn, error)
            self._changed.notify_all()
        return True

    def _collect(self) -> None:
        """Give turns to the runs that were written to."""
        now = time.monotonic()
        self._begun, begun = [], self._begun  # held until the outbox knows them
        for outbox in self.outboxes:
            for run, entities in outbox.collect().items():
                turn = self._turns.setdefault(run, _Turn(run, now))
                turn.entities += entities
                wait = min(max(_SHORTEST_WAIT, (now - turn.since) / 10), _LONGEST_WAIT)
                is_awaited = run.is_urgent and run.run_id is None
                is_due = run.is_ended or is_awaited or turn.entities >= _FULL_BATCH
                turn.due = min(turn.due, now if is_due else now + wait)
                if run.is_ended and len(self._turns) > _MOST_TURNS and not turn.is_busy:
                    del self._turns[run]
                    self._has_more = True
        begun.clear()

    def _next(self) -> _Turn | None:
        """What is due and can be delivered now."""
        now = time.monotonic()
        if self._is_closed or now < self._away_until or self._opening.locked():
            return None
        if self.is_away and any(turn.is_busy for turn in self._turns.values()):
            return None  # one is enough to see whether it is back
        if self._has_more:
            self._give_turns(now)
        adopted = {
            turn.run.key for turn in self._turns.values() if turn.run.outbox is not self._own
        }
        ready = [
            turn
            for turn in self._turns.values()
            if turn.due <= now
            and turn.not_before <= now
            and not turn.is_busy
            # What a dead process logged to a run goes before what is logged to it now.
            and not (turn.run.outbox is self._own and turn.run.key in adopted)
        ]
        return min(ready, key=lambda turn: (turn.not_before, turn.due), default=None)

    def _give_turns(self, now: float) -> None:
        room = _MOST_TURNS - len(self._turns) // 2
        if room <= 0:
            return
        self._has_more = False
        for outbox in self.outboxes:
            most = room + len(self._turns)
            runs = outbox.runs(most=most)
            self._has_more |= len(runs) == most
            for run in runs:
                if run not in self._turns and outbox.has_records(run):
                    self._turns[run] = _Turn(run, now, due=0.0)

    def _seconds_to_next(self) -> float:
        now = time.monotonic()
        moments = (
            max(turn.due, turn.not_before, self._away_until) - now for turn in self._turns.values()
        )
        # What is due already waits for another thread, which tells when it is done.
        later = (seconds for seconds in moments if seconds > 0)
        return min(min(later, default=math.inf), _SECONDS_BETWEEN_LOOKS)

    def _deliver(self, turn: _Turn) -> Exception | None:
        run = turn.run
        upto = run.outbox.last_seq
        try:
            while not self._is_closed and (records := run.outbox.read(run, upto)):
                was_refused = run.refused is not None
                send = partial(self._calls.send, run, records)
                # An artifact takes the time that it takes.
                done, refused = send() if records[0].has_files else _PATIENT(send)
                run.outbox.settle(run, done, refused)
                with self._changed:
                    # Of what is refused with its run the server is not asked.
                    self._after_success(turn, len(done), refused, was_asked=not was_refused)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - told, and tried again
            return error
        return None

    def _after_success(
        self, turn: _Turn, done: int, refused: Sequence[Refusal], *, was_asked: bool
    ) -> None:
        if was_asked:
            self._last_success, self._failures, self._away_until = time.monotonic(), 0, 0.0
        self.delivered += done - len(refused)
        if was_asked and self._away_since is not None:
            seconds = time.monotonic() - self._away_since
            self._away_since = None
            _logger.warning(
                "%s takes what is logged again, after %.0f s. Nothing was lost.",
                self.server,
                seconds,
            )
        if refused and not turn.is_refusal_told:
            turn.is_refusal_told = True
            kind, content, reason = refused[0]
            _logger.warning(
                "MLflow refuses %s %.200s%s: %s. It is set aside, the rest goes on; "
                "`mlflow-iap status` tells what was refused.",
                kind,
                content,
                f" and {len(refused) - 1} more" if len(refused) > 1 else "",
                reason.rstrip("."),
            )

    def _after_delivery(self, turn: _Turn) -> None:
        run = turn.run
        turn.failures = 0
        if run.trouble is not None:
            run.trouble = None
            run.outbox.save(run)
        if turn.due == math.inf and not run.outbox.has_records(run):
            if run.is_ended:
                run.outbox.forget(run)
            if run.is_ended or not run.is_owned:
                self._turns.pop(run, None)

    def _after_failure(self, turn: _Turn, error: Exception) -> None:
        if self._is_closed:
            return  # what stays is told already
        run, now = turn.run, time.monotonic()
        after = error.after if isinstance(error, NotYet) else None
        if after is None:
            turn.failures += 1
            after = min(2.0**turn.failures, _LONGEST_WAIT)
        turn.due, turn.not_before = min(turn.due, now), now + after
        # MLflow's own errors quote whole pages of the server's.
        why = re.split(r"\. Response body:|\n", str(error))[0]
        if run.trouble != why:
            run.trouble = why
            run.outbox.save(run)
        if isinstance(error, NotYet):
            return
        # Where others are delivered meanwhile, it is not the server that is away.
        is_its_own = turn.failures > 1 and self._last_success > turn.failed_at
        turn.failed_at = now
        if is_its_own:
            if turn.failures == 2:
                _logger.warning("A run waits, and is tried again later: %s", why)
            return
        self._failures += 1
        self._away_until = now + min(2.0**self._failures / 2, _LONGEST_PAUSE)
        if self._away_since is None:
            self._away_since = now
            _logger.warning(
                "%s cannot be written to; what is logged is kept in %s until it can. %s",
                self.server,
                (self._own or run.outbox).path or "memory",
                why,
            )

    def _adopt_now_and_then(self) -> None:
        with self._changed:
            is_time = time.monotonic() >= self._next_adoption and not self._is_closed
            if is_time:
                self._next_adoption = time.monotonic() + _SECONDS_BETWEEN_ADOPTIONS
        if is_time:
            self.adopt_safely()

    def _tidy(self) -> None:
        for outbox in self.outboxes:
            if outbox is not self._own and not outbox.waiting:
                with self._opening:
                    if outbox in self._adopted:
                        self._adopted.remove(outbox)
                        outbox.close()


def _end_open_runs(outbox: Outbox, why: str, when: float) -> None:
    time_ms = int(when * 1000)
    outbox.collect()
    for run in outbox.runs():
        if run.is_ended:
            continue
        if run.at_exit is not None:
            outbox.intake.append(run.number, "finish", {"status": run.at_exit, "time_ms": time_ms})
        elif run.is_owned:
            outbox.intake.append(run.number, "abandon", {"text": why, "time_ms": time_ms})
        else:
            run.is_ended = True
            outbox.save(run)
    outbox.collect()
