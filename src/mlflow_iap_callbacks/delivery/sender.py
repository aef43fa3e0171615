"""Delivers the records in outboxes, in a few background threads."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from mlflow import MlflowClient

from ..iap.retry_policy import RetryPolicy
from ..outbox import Outbox, QueuedRun, Record, Refusal
from ..outbox.adoption import Untaken, orphans
from ..outbox.journal_folder import new_outbox
from ..outbox.records import POINTS
from .asides import is_divisible, original, places, set_aside
from .clock import Clock
from .mlflow_calls import MlflowCalls
from .pace import Pace
from .refusals import NotYet, first_line
from .schedule import Schedule, Turn, seconds_aside
from .thread_signals import start_without_signals

_logger = logging.getLogger("mlflow_iap_callbacks")

# Concurrent requests: with a latency of 250 ms, enough for ten short trials a second.
_MAX_THREADS = 8
# Two, so that one can look for due runs while the other is delivering.
_MAX_IDLE_THREADS = 2
# Limits the retries of a request: none begins after this. Each request has MLflow's own timeout.
_RETRY = RetryPolicy(deadline=20.0)
# Seconds between two checks for new records. An append wakes no thread, because that would cost
# more than the append itself.
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_ADOPTIONS = 60.0
_SECONDS_BETWEEN_BEATS = 20.0
# How long this process's records wait for older ones from an adopted journal.
_SECONDS_FOR_OLDER_RECORDS = 5.0
_SECONDS_AFTER_A_FAULT = 30.0
# Tries of a record that was set aside. They take about half an hour if there is no outage.
_MOST_TRIES = 8
# After this many failures, a run is created without its tags, and these are set one by one.
_TRIES_OF_A_START = 2
# Parts of one run that are set aside at the same time. If more fail, the server is at fault.
_MOST_ASIDE = 20
_SECONDS_WITHOUT_ROOM = 60.0
# For requests whose failure is expected.
_ONCE = RetryPolicy(deadline=1.0)

Marks = list[tuple[Outbox, int]]  # with sequence numbers

_this_thread = threading.local()


def is_delivering() -> bool:
    """Return whether this thread is delivering records, so that its requests must not wait."""
    return getattr(_this_thread, "is_delivering", False)


class Sender:
    """Delivers this process's outbox and those of dead processes.

    The records of a run are sent in order. Several runs are delivered at the same time. A record is
    retried until MLflow has accepted or permanently rejected it.

    Args:
        client: used for all requests.
        server: URI of the server, as its journals contain it.
        clock: tells the time.
        max_threads: how many threads deliver. With 0, the caller must call ``deliver_next``.
    """

    def __init__(
        self,
        client: MlflowClient,
        server: str,
        *,
        clock: Clock | None = None,
        max_threads: int = _MAX_THREADS,
    ) -> None:
        self.server = server
        self.clock = clock or Clock()
        self.delivered = self.refused = 0  # records
        self.interrupted_at: Marks | None = None  # the user pressed Ctrl-C while it delivered these
        self._calls = MlflowCalls(client, self.clock)
        self._schedule = Schedule()
        self._pace = Pace(self.clock)
        self._own: Outbox | None = None
        self._adopted: list[Outbox] = []
        self._opening = threading.Lock()
        self._adoption = threading.Lock()
        self._adopting_since: float | None = None
        self._taking_over = threading.Lock()  # held to take over a journal; a fork waits for it
        self._reported: set[Path] = set()  # journals that cannot be taken over
        self._next_adoption = self._next_beat = 0.0
        self._begun: list[QueuedRun] = []
        # By experiment and key.
        self._open: WeakValueDictionary[tuple[str, str], QueuedRun] = WeakValueDictionary()
        self._changed = threading.Condition()
        # An SQLite file takes one writer at a time.
        self._max_threads = min(max_threads, 1) if server.startswith("sqlite:") else max_threads
        self._threads = 0
        self._idle = 0
        self._waiters = 0  # threads that wait for the delivery
        self._is_alone = False  # whether no thread could be started
        self._is_closed = False

    @property
    def client(self) -> MlflowClient:
        """The client that sends its requests."""
        return self._calls.client

    def use(self, client: MlflowClient) -> None:
        """Send all further requests with this client."""
        self._calls.use(client)

    @property
    def outbox(self) -> Outbox:
        """This process's own outbox."""
        if self._own is None:
            with self._opening:
                self._own = self._own or new_outbox(self.server)
        return self._own

    @property
    def outboxes(self) -> list[Outbox]:
        """All outboxes that this sender delivers from."""
        return [*([] if self._own is None else [self._own]), *self._adopted]

    @property
    def waiting(self) -> int:
        """Number of records that are not delivered yet."""
        return sum(outbox.waiting for outbox in self.outboxes)

    @property
    def is_away(self) -> bool:
        """Whether the server is unreachable: its last request failed, or it does not answer."""
        return self._schedule.away_since is not None

    @property
    def is_stuck(self) -> bool:
        """Whether all waiting records are only being retried."""
        with self._changed:
            return self._schedule.is_stuck

    @property
    def has_only_asides(self) -> bool:
        """Whether all waiting records were set aside because the server fails on them."""
        with self._changed:
            return self._schedule.has_only_asides

    def begin(self, key: str, experiment: str) -> QueuedRun:
        """Return a new run of this process. Append its ``start`` before its other records."""
        return self._begin(key, experiment, is_owned=True, run_id=None)

    def append_run(self, records: Sequence[tuple[str, Any]]) -> bool:
        """Append all records of a new run that has ended; return whether they were appended."""
        is_appended = self.outbox.append_run(records)
        if not self._threads:
            self._start()
        return is_appended

    def join(self, key: str, experiment: str, run_id: str | None) -> QueuedRun:
        """Return a run that another process started, or that had already ended."""
        known = self._open.get((experiment, key))
        if known is not None and not known.is_ended and known.outbox.intake.is_open:
            return known  # all copies of a handle are the same writer
        run = self._begin(key, experiment, is_owned=False, run_id=run_id)
        content = {"key": key, "experiment": experiment, "run_id": run_id}
        run.outbox.intake.append(run.number, "join", content)
        return run

    def marks(self) -> Marks:
        """Return what has been appended so far, for ``flush``."""
        return [(outbox, outbox.last_seq) for outbox in self.outboxes]

    def flush(self, timeout: float | None, upto: Marks | None = None) -> bool:
        """Deliver everything that was appended.

        Args:
            timeout: seconds to wait; None for no limit.
            upto: the last records to wait for. Default: those appended so far.

        Returns:
            Whether MLflow has accepted or permanently rejected all of them.
        """
        with self._changed:
            marks = self.marks() if upto is None else upto
            self._collect()
            self._schedule.hurry()
            self._wake()
            return self._wait_until(
                lambda: not any(outbox.holds(seq) for outbox, seq in marks), timeout
            )

    def run_id(self, run: QueuedRun, timeout: float | None) -> str | None:
        """Wait for MLflow's id of a run of this process's outbox.

        Args:
            run: the run.
            timeout: seconds to wait; None for no limit.

        Returns:
            The id; None if it is not known in time, or if MLflow rejected the run.
        """
        with self._changed:
            self._collect()
            if run.run_id is None:
                self._schedule.hurry(run)
                self._wake()
            self._wait_until(lambda: run.run_id is not None or run.refused is not None, timeout)
        return run.run_id

    def end_open_runs(self) -> None:
        """End this process's open runs, with their ``at_exit`` status or as failed."""
        with self._changed:
            self._collect()
            if self._own is not None:
                why = "The process ended before the run was finished."
                self._own.end_open_runs(why, self.clock.time())
            self._wake()

    def adopt(
        self,
        seconds: float = math.inf,
        *,
        refused: bool = False,
        other_hosts: Collection[Path] = (),
    ) -> list[Untaken]:
        """Take over the journals of dead processes for this server. Their open runs end as failed.

        Args:
            seconds: no further journal is taken over after this time.
            refused: retry the records that MLflow rejected.
            other_hosts: journals of other hosts, to take over as well.

        Returns:
            The journals that cannot be taken over.
        """
        untaken: list[Untaken] = []
        if not self._adoption.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
            return untaken  # another thread is doing this
        try:
            since = self._adopting_since = self.clock.monotonic()
            self._next_adoption = since + _SECONDS_BETWEEN_ADOPTIONS
            journals = orphans(self.server, other_hosts=other_hosts, passed_over=self._reported)
            while self.clock.monotonic() - since < seconds:
                with self._taking_over:
                    found = None if self._is_closed else next(journals, None)
                    if isinstance(found, Outbox):
                        self._add_adopted(found, refused=refused)
                if found is None:
                    break
                if isinstance(found, Untaken):
                    untaken.append(found)
        finally:
            self._adopting_since = None
            self._adoption.release()
        with self._changed:
            self._schedule.has_more = True
            self._wake()
        return untaken

    def adopt_safely(self, seconds: float = math.inf) -> None:
        """Call ``adopt``, but log its errors: this process's own records are sent anyway."""
        try:
            for journal in self.adopt(seconds):
                self._reported.add(journal.path)
                _logger.warning("The journal %s cannot be sent: %s.", journal.path, journal.why)
        except Exception as error:  # noqa: BLE001
            _logger.warning(
                "Records of dead processes could not be taken over. This is tried again later: %s",
                error,
            )

    def _add_adopted(self, outbox: Outbox, *, refused: bool) -> None:
        if refused:
            outbox.requeue_refused()
        self._calls.note_refused(outbox.refused())
        outbox.end_open_runs("The process that wrote to the run died.", outbox.died)
        if outbox.waiting:
            self._adopted.append(outbox)
        else:
            outbox.close()

    def deliver_next(self) -> bool:
        """Deliver the run that is due, in this thread; return False if there is none."""
        self._adopt_if_due()
        with self._changed:
            self._beat_if_due()
            self._collect()
            turn = self._next_turn()
            if turn is None:
                return False
            self._wake()  # for other runs that are due
        _this_thread.is_delivering = True
        try:
            self._deliver(turn)
        finally:
            _this_thread.is_delivering = False
        self._close_delivered()
        return True

    def close(self) -> None:
        """Stop delivering; the waiting records stay on disk."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        with self._opening, self._taking_over:
            for outbox in self.outboxes:
                outbox.close()
            self._own, self._adopted = None, []

    def stop_for_fork(self) -> None:
        """Keep this process's threads out of SQLite, whose locks would stay taken in a child."""
        self._opening.acquire()
        self._taking_over.acquire()
        for outbox in self.outboxes:
            outbox.stop_for_fork()

    def go_on_after_fork(self) -> None:
        """Undo ``stop_for_fork`` in the parent."""
        for outbox in self.outboxes:
            outbox.go_on_after_fork()
        self._taking_over.release()
        self._opening.release()

    def leave_to_parent(self) -> None:
        """In a forked child, leave the waiting records to the parent."""
        for outbox in self.outboxes:
            outbox.leave_to_parent()

    def _begin(self, key: str, experiment: str, *, is_owned: bool, run_id: str | None) -> QueuedRun:
        run = self.outbox.begin(key, experiment, is_owned=is_owned, run_id=run_id)
        self._begun.append(run)
        self._open[experiment, key] = run
        if not self._threads:
            self._start()
        return run

    def _start(self) -> None:
        with self._changed:
            self._wake()

    def _work(self) -> None:
        is_needed = True
        while is_needed:
            try:
                is_needed = self.deliver_next() or self._rest()
            except Exception:  # a bug in this package; the waiting records stay on disk
                _logger.exception("The delivery to %s failed. It will be retried.", self.server)
                with self._changed:
                    self.clock.wait(self._changed, _SECONDS_AFTER_A_FAULT)
        with self._changed:
            self._threads -= 1

    def _rest(self) -> bool:
        """Wait for the next turn; return False if this thread is not needed."""
        with self._changed:
            if self._is_closed or self._idle >= _MAX_IDLE_THREADS:
                return False
            self._idle += 1
            next_turn = self._schedule.seconds_to_next(self.clock.monotonic())
            self.clock.wait(self._changed, min(next_turn, _SECONDS_BETWEEN_LOOKS))
            self._idle -= 1
        return True

    def _adopt_if_due(self) -> None:
        with self._changed:
            now = self.clock.monotonic()
            is_due = now >= self._next_adoption and not self._is_closed
            if is_due:
                self._next_adoption = now + _SECONDS_BETWEEN_ADOPTIONS
        if is_due:
            self.adopt_safely()

    def _deliver(self, turn: Turn) -> None:
        run = turn.run
        upto = run.outbox.last_seq
        pause, began = 0.0, self.clock.thread_time()
        try:
            while not (pause or self._is_closed) and (records := run.outbox.read(run, upto)):
                self._send(turn, records)
                before, began = began, self.clock.thread_time()
                pause = self._pause_after(turn, records, self._pace.pause_after(began - before))
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            with self._changed:
                self._after_failure(turn, error)
                self._changed.notify_all()
            return
        with self._changed:
            is_done = self._schedule.ended(turn)
            if pause:
                self._schedule.pause(turn, self.clock.monotonic(), pause)
            if run.trouble is not None:
                run.trouble = None
                run.outbox.save(run)
            if is_done and run.is_ended:
                run.outbox.forget(run)
            self._changed.notify_all()

    def _pause_after(self, turn: Turn, records: Sequence[Record], seconds: float) -> float:
        """Return the seconds that the run's next request waits. Other runs do not wait.

        Only curves of a run that has not ended wait, and not while a thread waits for the delivery.
        """
        if not seconds or turn.run.is_ended or records[0].kind not in POINTS:
            return 0.0
        with self._changed:
            longest = self._schedule.longest_pause(turn, self.clock.monotonic())
            return 0.0 if self._waiters else min(seconds, longest)

    def _send(self, turn: Turn, records: Sequence[Record]) -> None:
        run = turn.run
        # If the run is rejected, its records are rejected without a request.
        is_request = run.refused is None
        asked_at = self.clock.monotonic()
        turn.asked_at = math.inf if records[0].has_files else asked_at
        if records[0].has_files and is_request:
            sent = self._send_files(turn, records)
        else:
            sent = self._send_records(turn, records)
        if sent is None:
            return
        done, refused = sent
        self._calls.note_refused(refused)
        with self._changed:
            self.delivered += max(0, len(done) - len(refused))
            self.refused += len(refused)
        run.outbox.settle(run, done, refused)
        with self._changed:
            turn.is_aside = False
            self._drop_replaced(run, done)
            now, seconds = self.clock.monotonic(), None
            if is_request:
                took = 0.0 if records[0].has_files else now - asked_at
                seconds = self._schedule.succeeded(now, took)
            if seconds is not None:
                _logger.warning(
                    "%s accepts records again after %.0f s. Nothing was lost.", self.server, seconds
                )
            if refused and not turn.is_refusal_reported:
                turn.is_refusal_reported = True
                _log_refusal(refused)
            self._changed.notify_all()

    def _send_files(
        self, turn: Turn, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]] | None:
        """Send an artifact or a model, without a time limit.

        If this fails although the server works, the record is set aside: the rest of its run does
        not wait for it.

        Returns:
            The same as ``MlflowCalls.send``; None if the record was set aside.
        """
        run, record = turn.run, records[0]
        with self._changed:
            others = self._schedule.others(run)
        for other in others if not turn.is_aside else ():
            uploading = run.outbox.read(other.run, record.seq)[:1] if other.is_busy else ()
            if any(places(record) & places(older) for older in uploading):
                raise NotYet("An older file with the same path is being uploaded.", 1.0)
        try:
            return self._calls.send(run, records)
        except NotYet:
            raise
        except Exception as error:
            if not _RETRY(partial(self._calls.answers, run)):
                raise
            if turn.is_aside:
                return self._after_another_try(turn, record, error)
            aside = run.outbox.set_aside(run, record)
            if aside is None:
                raise
            name = Path(record.content["path"]).name
            _log_aside(f"{record.kind} {name}", first_line(error))
            self._add_aside(aside, first_line(error))
            return None

    def _send_records(
        self, turn: Turn, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        """Send records that have no files, in one request.

        If this fails although the server accepts a simple write to the run, the parts at fault are
        set aside.
        """
        run, record = turn.run, records[0]
        if record.kind == "start" and run.run_id is None and turn.failures >= _TRIES_OF_A_START:
            return self._send_parts(run, records, NotYet("The server cannot store the run's tags."))
        some = records if is_divisible(record) else [original(record)]
        try:
            done, refused = _RETRY(partial(self._calls.send, run, some))
        except NotYet:
            raise
        except Exception as error:
            if run.run_id is None or not _RETRY(partial(self._calls.takes_writes, run)):
                raise
            if is_divisible(record):
                return self._send_parts(run, records, error)
            return self._after_another_try(turn, record, error)
        return records[: len(done)], refused

    def _send_parts(
        self, run: QueuedRun, records: Sequence[Record], error: Exception
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        with self._changed:
            others = self._schedule.others(run)
        room = _MOST_ASIDE - sum(other.is_aside for other in others)
        if room <= 0:
            raise NotYet(first_line(error), _SECONDS_WITHOUT_ROOM)
        done, refused, failing = _ONCE(partial(self._calls.send_in_parts, run, records, room))
        if failing and not _RETRY(partial(self._calls.takes_writes, run)):
            raise error  # an outage began
        for part in failing:
            self._append_aside(run, part, done[-1].seq)
        if failing:
            kind, content, why = failing[0]
            more = f" and {len(failing) - 1} more" if len(failing) > 1 else ""
            _log_aside(f"{kind} {content!r:.200}{more}", why)
        return done, refused

    def _append_aside(self, run: QueuedRun, part: Refusal, seq: int) -> None:
        outbox = run.outbox
        aside = outbox.begin(run.key, run.experiment, is_owned=False, run_id=run.run_id)
        aside.is_ended = True
        self._begun.append(aside)
        content = {"key": run.key, "experiment": run.experiment, "run_id": run.run_id}
        content["start"] = run.start
        outbox.intake.append(aside.number, "join", content)
        if not outbox.intake.append(aside.number, *set_aside(part, seq)):
            raise OSError("the journal is closed")
        self._add_aside(aside, part.reason)

    def _after_another_try(
        self, turn: Turn, record: Record, error: Exception
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        """Let a record wait longer after each failed try, and refuse it after many tries."""
        if turn.is_aside and turn.failures >= _MOST_TRIES:
            shown = original(record)
            return [record], [Refusal(shown.kind, shown.content, first_line(error))]
        turn.is_aside = True
        turn.failures += 1
        raise NotYet(first_line(error), seconds_aside(turn.failures)) from error

    def _add_aside(self, aside: QueuedRun, why: str) -> None:
        with self._changed:
            self._collect()
            self._schedule.add_aside(aside, self.clock.monotonic())
        aside.trouble = why
        aside.outbox.save(aside)

    def _close_delivered(self) -> None:
        for outbox in self._adopted.copy():
            if not outbox.waiting:
                with self._taking_over:
                    if outbox in self._adopted:
                        self._adopted.remove(outbox)
                        outbox.close()

    # The methods below are called while self._changed is held.

    def _beat_if_due(self) -> None:
        now = self.clock.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + _SECONDS_BETWEEN_BEATS
            for outbox in self.outboxes:
                outbox.beat()

    def _wait_until(self, is_over: Callable[[], bool], timeout: float | None) -> bool:
        ends = math.inf if timeout is None else self.clock.monotonic() + timeout
        self._waiters += 1
        try:
            while not is_over():
                self._note_silence()  # each of the threads may be waiting for a response
                left = ends - self.clock.monotonic()
                if left <= 0 or self._is_closed:
                    return False
                if not self._is_alone or not self._deliver_here():
                    self.clock.wait(self._changed, min(left, 1.0))
        finally:
            self._waiters -= 1
        return True

    def _deliver_here(self) -> bool:
        """Deliver the run that is due, in a thread that waits; return False if there is none."""
        self._changed.release()
        try:
            return self.deliver_next()
        finally:
            self._changed.acquire()

    def _wake(self) -> None:
        """Let a thread check what is due: an idle one, or a new one if all are busy."""
        if self._idle:
            self._changed.notify()
        elif self._threads < self._max_threads:
            thread = threading.Thread(target=self._work, name="mlflow-iap-sender", daemon=True)
            try:
                start_without_signals(thread)
            except RuntimeError:  # the interpreter is exiting
                self._is_alone = not self._threads
                return
            self._threads += 1

    def _drop_replaced(self, run: QueuedRun, done: Sequence[Record]) -> None:
        """Drop records that were set aside if a newer record, just delivered, replaces them."""
        newest = {place: record.seq for record in done for place in places(record)}
        for turn in self._schedule.others(run) if newest else ():
            aside = turn.run
            oldest = () if turn.is_busy else aside.outbox.read(aside, aside.outbox.last_seq)[:1]
            for record in oldest:
                seq, replaced = original(record).seq, places(record)
                if replaced and all(newest.get(place, 0) > seq for place in replaced):
                    aside.outbox.settle(aside, [record])

    def _collect(self) -> None:
        """Schedule the runs that have new records."""
        now = self.clock.monotonic()
        self._begun, begun = [], self._begun  # held until the outbox knows them
        for outbox in self.outboxes:
            for run, entities in outbox.collect().items():
                self._schedule.add(run, entities, now)
        begun.clear()

    def _next_turn(self) -> Turn | None:
        now, since = self.clock.monotonic(), self._adopting_since
        if self._is_closed or (since is not None and now - since < _SECONDS_FOR_OLDER_RECORDS):
            return None
        self._note_silence()
        self._schedule.load(self.outboxes, now)
        return self._schedule.take(now)

    def _note_silence(self) -> None:
        silence = self._schedule.silence(self.clock.monotonic())
        if silence is not None:
            _logger.warning(
                "%s has not answered for %.0f s; records are kept in %s and sent later.",
                self.server,
                silence,
                (self._own or self.outboxes[0]).path or "memory",
            )

    def _after_failure(self, turn: Turn, error: Exception) -> None:
        run = turn.run
        in_trouble = self._schedule.failed(turn, error, self.clock.monotonic())
        if self._is_closed:
            return  # the waiting records were already reported
        why = first_line(error)
        if run.trouble != why:
            run.trouble = why
            run.outbox.save(run)
        if in_trouble == "run":
            _logger.warning(
                "The records of a run cannot be sent yet; this is tried again later. %s", why
            )
        elif in_trouble == "server":
            _logger.warning(
                "%s cannot be written to; records are kept in %s and sent later. %s",
                self.server,
                (self._own or run.outbox).path or "memory",
                why,
            )


def _log_aside(what: str, why: str) -> None:
    _logger.warning(
        "MLflow could not store %s. This is retried later, and the rest of the run is sent now. %s",
        what,
        why,
    )


def _log_refusal(refused: Sequence[Refusal]) -> None:
    kind, content, reason = refused[0]
    _logger.warning(
        "MLflow rejected %s %.200s%s: %s. The rest of the run is delivered; `mlflow-iap status` "
        "lists what was rejected.",
        kind,
        content,
        f" and {len(refused) - 1} more" if len(refused) > 1 else "",
        reason.rstrip("."),
    )
