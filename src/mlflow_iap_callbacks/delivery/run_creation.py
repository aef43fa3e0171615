"""Creates each run exactly once, even if other processes try to: it is looked up by its key."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run, RunStatus, RunTag, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ..errors import IAPUnknownOutcomeError
from ..iap.client import IAPMlflowClient
from ..iap.run_lookup import find_run, find_runs, is_agreed
from ..iap.unwrapping import unwrapped_errors
from ..limits import MAX_TAGS
from ..outbox import QueuedRun
from ..tags import (
    AGAIN_TAG,
    AGREED_TAG,
    ASKED_TWICE_TAG,
    ENDED_TAG,
    JOURNAL_TAG,
    RUN_KEY_TAG,
    STUDY_TAG,
    TRIAL_TAG,
)
from .clock import Clock
from .experiments import Experiments
from .names import NamesByRun
from .parents import Parents, Place
from .refusals import NotYet, refusal
from .server_uri import server_uri

_logger = logging.getLogger("mlflow_iap_callbacks")

# Seconds after a request for which the server may still create the run, although the process that
# sent the request died or stopped waiting.
_PATIENCE = 30.0
# Seconds after which processes that create a shared run at the same time see each other's runs.
_TO_AGREE = 2.0
# Maximum seconds for which a run waits to be created by the process that executed its trial.
_SECONDS_LEFT_TO_OTHERS = 20.0
_MOST_REMEMBERED = 10_000  # runs
# Seconds after logging during which a claimed run is created without looking for an existing one.
CLAIM_SECONDS = 5.0


class Mode(str, Enum):
    """Who else may have created a run with the same key."""

    NEW = "new"  # nobody: no other process knows the key
    CLAIMED = "claimed"  # nobody yet: this process executed the trial
    LOGGED = "logged"  # the process that executed the trial, or others that logged it afterwards
    RESUMED = "resumed"  # a process that has ended; the run is continued
    SHARED = "shared"  # many processes, at the same time


class RunCreation:
    """Finds or creates runs, with the experiments and parents that they need.

    Args:
        client: any MlflowClient that is thread-safe, as MLflow's own are.
        clock: tells the time.
    """

    def __init__(self, client: MlflowClient, clock: Clock) -> None:
        self.client = client
        self._clock = clock
        self.names = NamesByRun()
        self._experiments = Experiments(lambda: self.client)
        self._parents = Parents(lambda: self.client, clock, self._recovered)
        self._first_seen: dict[Place, float] = {}
        self._again: set[str] = set()  # ids of runs that were created again
        self._made: dict[Place, str] = {}  # ids of the last runs, in case one is logged again
        # Runs that the server may still create a second time; forgotten when they end.
        self._doubtful: dict[Place, Run] = {}
        self._starting: dict[Place, QueuedRun] = {}

    def start(self, run: QueuedRun, content: Mapping[str, Any]) -> None:
        """Find the run in MLflow or create it, and set its id.

        Raises:
            NotYet: other threads or processes may be creating it, or it has to wait for its parent.
        """
        if run.run_id is None and content["mode"] == Mode.SHARED:
            self._parents.await_run(run)  # before a child of it is started
        with self._alone(run):
            if run.run_id is None and content["mode"] in (Mode.NEW, Mode.CLAIMED):
                made = self._made.get(run.place)
                if made is not None:
                    self._add_tags(run, made, content["tags"])
                    run.run_id = made
            if run.run_id is None:
                self._start(run, content)

    def known(self, run: QueuedRun) -> str:
        """Return MLflow's id of a run that this or another process has already created.

        Raises:
            NotYet: the run has not been created yet.
        """
        if run.run_id is None and (run.is_owned or run.start is not None):
            self.start(run, _start_again(run))
        if run.run_id is None:
            found = find_run(self.client, self._experiments.id_of(run.experiment), run.key)
            if found is None:
                raise NotYet("The run, which another process is to create, does not exist yet.")
            self._set_id(run, found)
        return str(run.run_id)

    def stage(self, run_id: str) -> str | None:
        """Return the lifecycle stage of a run; None if the server does not know the run."""
        try:
            return str(self.client.get_run(run_id).info.lifecycle_stage)
        except Exception as error:
            if refusal(error) is None:
                raise
            return None

    def can_create_again(self, run: QueuedRun, run_id: str) -> bool:
        """Forget the id of a run that the server no longer knows, as after the restore of a backup.

        Returns:
            Whether the run will be found by its key, or created again. False if the lost run was
            itself created again, or if only other processes can create it.
        """
        if run_id in self._again or (run.start is None and not run.is_owned):
            return False
        if run.run_id == run_id:
            _logger.warning(
                "%s no longer has the run %s. The run is created again, but what was already "
                "delivered to it is gone.",
                server_uri(self.client.tracking_uri),
                run_id,
            )
            self._forget(run.experiment)
            run.run_id = None
            run.outbox.save(run)
        return True

    def take_agreed(self, run: QueuedRun) -> bool:
        """Use the run that processes agreed on, after one of them deleted the run of this process.

        Returns:
            Whether there is another run that all processes share.
        """
        if run.start is None or run.start["mode"] != Mode.SHARED:
            return False
        experiment_id = self._experiments.id_of(run.experiment)
        agreed = next(filter(is_agreed, find_runs(self.client, experiment_id, run.key)), None)
        agreed = agreed or self._restored(experiment_id, run.key)
        if agreed is None:
            return False
        self.names.forget(run)
        self._set_id(run, agreed)
        self._parents.found(run)
        return True

    def _restored(self, experiment_id: str, key: str) -> Run | None:
        """Restore one of two agreed runs if, on a slow server, processes deleted both.

        If there is only one, its user has deleted it.
        """
        deleted = find_runs(self.client, experiment_id, key, ViewType.DELETED_ONLY)
        agreed = [run for run in deleted if is_agreed(run)]
        if len(agreed) < 2:
            return None
        with _unless_refused():
            self.client.restore_run(agreed[0].info.run_id)
        return agreed[0]

    def refuse(self, run: QueuedRun) -> None:
        """Note that the run will never be created, so that its child runs do not wait for it."""
        self._parents.refused(run)

    def reopen(self, run: QueuedRun, found: Run) -> None:
        """Set an ended run to RUNNING again, and tag it as written by this journal."""
        self.client.set_tag(found.info.run_id, JOURNAL_TAG, run.outbox.name)
        self._forget_end(found)
        if found.info.status != "RUNNING":
            self.update(found.info.run_id, "RUNNING", None)

    def end(self, run: QueuedRun, status: str, time_ms: int) -> None:
        """Set a run's final status, and its end in milliseconds since 1970."""
        self.update(str(run.run_id), status, time_ms)
        found = self._doubtful.get(run.place)
        if found is not None:
            self._delete_late_ones(found, run.key)
            self._doubtful.pop(run.place, None)  # gone if another queued run for it has ended

    def update(
        self, run_id: str, status: str | None, time_ms: int | None, name: str | None = None
    ) -> None:
        """Set a run's status, its end in milliseconds since 1970, and its name, if given."""
        # The public set_terminated reads the run first, and prints two lines for each.
        store = self.client._tracking_client.store
        with unwrapped_errors():
            number = None if status is None else RunStatus.from_string(status)
            store.update_run_info(run_id, number, time_ms, name)

    @contextmanager
    def _alone(self, run: QueuedRun) -> Iterator[None]:
        """Ensure that only one thread at a time looks for, or creates, the run with this key."""
        if self._starting.setdefault(run.place, run) is not run:
            raise NotYet("The run is being created.", 0.5)
        try:
            yield
        finally:
            del self._starting[run.place]

    def _start(self, run: QueuedRun, content: Mapping[str, Any]) -> None:
        mode = Mode(content["mode"])
        now, logged_at = self._clock.time(), content.get("logged_at", 0.0)
        # The time comes from another machine's clock, or is a local time of an unknown zone.
        not_before = min(content.get("not_before", 0.0), logged_at + _SECONDS_LEFT_TO_OTHERS)
        # A wall clock that was set back meanwhile must not delay the run.
        if logged_at <= now < not_before:
            raise NotYet("Another process may be about to log the run.", not_before - now)
        experiment_id = self._experiments.id_of(run.experiment)
        was_lost = run.tried is not None
        found: Run | None
        if mode is Mode.SHARED:
            found = self._agree(run, experiment_id, content)
            self.names.forget(run)
        else:
            found = self._look(run, experiment_id, mode, content)
        if found is None:
            self._wait_for_earlier_try(run)
            found = self._create(run, experiment_id, content)
        else:
            with self._again_if_changed(mode, found.info.run_id):
                self._take(run, found, mode, content["tags"])
        self._set_id(run, found)
        if mode in (Mode.RESUMED, Mode.SHARED):
            self._parents.found(run)
        if was_lost or ASKED_TWICE_TAG in found.data.tags:
            self._doubtful[run.place] = found
            self._delete_late_ones(found, run.key)

    def _take(self, run: QueuedRun, found: Run, mode: Mode, tags: Mapping[str, str]) -> None:
        """Go on with a run created by another process, which did not know all of its tags."""
        run_id = found.info.run_id
        if mode in (Mode.RESUMED, Mode.SHARED) and not run.is_adopted:
            self.reopen(run, found)
        else:
            self._forget_end(found)
        if mode in (Mode.CLAIMED, Mode.LOGGED):
            self._add_tags(run, run_id, tags)
        elif mode is Mode.SHARED:
            self._add_tags(run, run_id, tags, known=found.data.tags)

    @contextmanager
    def _again_if_changed(self, mode: Mode, run_id: str) -> Iterator[None]:
        """Look again for a run that another process changes or deletes at the same time."""
        try:
            yield
        except Exception as error:
            # Two processes may both try to insert a tag that the run does not have yet.
            if "IntegrityError" in str(error) or (
                mode is Mode.SHARED
                and refusal(error) is not None
                and self.stage(run_id) != LifecycleStage.ACTIVE
            ):
                raise NotYet("Another process changed the run at the same time.", 0.5) from None
            raise

    def _add_tags(
        self, run: QueuedRun, run_id: str, given: Mapping[str, str], known: Container[str] = ()
    ) -> None:
        names = self.names.of(run, lambda: self.client.get_run(run_id))
        tags = [RunTag(*tag) for tag in names.tags(given).items() if tag[0] not in known]
        # Tags with the original names of renamed tags may exceed the limit of one request.
        for first in range(0, len(tags), MAX_TAGS):
            self.client.log_batch(run_id, tags=tags[first : first + MAX_TAGS])

    def _look(
        self, run: QueuedRun, experiment_id: str, mode: Mode, content: Mapping[str, Any]
    ) -> Run | None:
        is_fresh = 0.0 <= self._clock.time() - content.get("logged_at", 0.0) <= CLAIM_SECONDS
        if (
            mode in (Mode.LOGGED, Mode.RESUMED)
            or (mode is Mode.CLAIMED and not is_fresh)
            or run.tried is not None
            or run.is_adopted
        ):
            found = find_run(self.client, experiment_id, run.key)
            return found or self._find_of_other_version(run, experiment_id, content)
        return None

    def _find_of_other_version(
        self, run: QueuedRun, experiment_id: str, content: Mapping[str, Any]
    ) -> Run | None:
        """Find a trial's run by the key of another version, with or without the trial's start."""
        former, began, tags = content.get("former_key"), content["time_ms"], content["tags"]
        if former is not None:
            return find_run(self.client, experiment_id, former, began=began)
        if run.key == f"{tags.get(STUDY_TAG)}-{tags.get(TRIAL_TAG)}":
            prefix = f"{run.key}-"
            return find_run(self.client, experiment_id, prefix, began=began, is_prefix=True)
        return None

    def _agree(self, run: QueuedRun, experiment_id: str, content: Mapping[str, Any]) -> Run:
        """Return the one run that all processes use.

        MLflow can create two runs at the same time. So each process waits until all are visible,
        takes the one with the lowest id, marks it for later processes, and deletes the others. The
        run of the process that executed the trial is preferred, because it is logged to at once.
        """
        found = find_runs(self.client, experiment_id, run.key)
        if not any(map(is_agreed, found)):
            if not found:
                self._wait_for_earlier_try(run)
                self._create(run, experiment_id, content)
                self._first_seen.pop(run.place, None)
            now = self._clock.monotonic()
            wait = self._first_seen.setdefault(run.place, now) + _TO_AGREE - now
            if wait > 0:
                raise NotYet("Other processes may be creating the run at the same time.", wait)
            with _unless_refused():
                chosen = min(found, key=lambda each: JOURNAL_TAG in each.data.tags)
                self.client.set_tag(chosen.info.run_id, AGREED_TAG, "true")
            found = find_runs(self.client, experiment_id, run.key)
        agreed = next(filter(is_agreed, found), None)
        if agreed is None:
            raise NotYet("Another process chose a different run at the same time.", 0.5)
        for other in found:
            if other is not agreed:
                self._delete(other)
        return agreed

    def _delete_late_ones(self, kept: Run, key: str) -> None:
        """Delete empty duplicates of a run, created by requests that seemed to be lost."""
        for other in find_runs(self.client, kept.info.experiment_id, key):
            tags = kept.data.tags.keys() | other.data.tags.keys()
            # Otherwise another process may have created it, and be about to write to it.
            is_late = not tags.isdisjoint({ASKED_TWICE_TAG, AGREED_TAG})
            is_empty = not (other.data.metrics or other.data.params)
            if other.info.run_id != kept.info.run_id and is_late and is_empty:
                self._delete(other)

    def _delete(self, run: Run) -> None:
        with _unless_refused():
            self.client.delete_run(run.info.run_id)

    def _wait_for_earlier_try(self, run: QueuedRun) -> None:
        since = self._clock.time() - (run.tried or 0.0)
        if 0 <= since < _PATIENCE:
            raise NotYet(
                "The response to the run's creation was lost. If the run does not appear, it is "
                "created again.",
                _PATIENCE - since,
            )

    def _create(self, run: QueuedRun, experiment_id: str, content: Mapping[str, Any]) -> Run:
        tags = {RUN_KEY_TAG: run.key, **self.names.begin(run).tags(content["tags"])}
        if Mode(content["mode"]) in (Mode.RESUMED, Mode.SHARED):
            tags[JOURNAL_TAG] = run.outbox.name
        parent = content.get("parent_id") or None
        if parent is None and content.get("parent") is not None:
            parent = self._parents.id_of(run, content["parent"], experiment_id)
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        if "is_again" in content:
            tags[AGAIN_TAG] = _what_is_missing(content, parent)
        if run.tried is not None:
            tags[ASKED_TWICE_TAG] = "true"
        run.tried = self._clock.time()
        run.outbox.save(run)
        try:
            made = self.client.create_run(experiment_id, content["time_ms"], tags, content["name"])
        except Exception as error:
            # The errors of other clients do not say whether the run was created.
            is_unknown = isinstance(error, IAPUnknownOutcomeError)
            is_unknown |= not isinstance(self.client, IAPMlflowClient)
            run.tried = self._clock.time() if is_unknown else None
            run.outbox.save(run)
            if self.names.learns_from(error, tags):
                raise NotYet("The server does not accept colons in names.", 0.0) from None
            if refusal(error) is not None and not self._experiments.is_current(
                run.experiment, experiment_id
            ):
                self._forget(run.experiment)
                raise NotYet("The run's experiment was created again.", 0.0) from None
            raise
        run.tried = None
        if AGAIN_TAG in tags:
            self._again.add(str(made.info.run_id))
        return made

    def _recovered(self, run: QueuedRun) -> str | None:
        """Return the id of a parent that the server lost; None if it stays lost."""
        run_id = str(run.run_id)
        if self.stage(run_id) is None and self.can_create_again(run, run_id):
            return self.known(run)
        return None

    def _set_id(self, run: QueuedRun, found: Run) -> None:
        run.run_id = self._made[run.place] = str(found.info.run_id)
        run.experiment_id = str(found.info.experiment_id)
        if len(self._made) > _MOST_REMEMBERED:
            del self._made[next(iter(self._made))]
        run.outbox.save(run)

    def _forget_end(self, found: Run) -> None:
        if ENDED_TAG in found.data.tags:
            with _unless_refused():
                self.client.delete_tag(found.info.run_id, ENDED_TAG)

    def _forget(self, experiment: str) -> None:
        """Forget an experiment and its runs, which the server may have lost."""
        self._experiments.forget(experiment)
        self._parents.forget(experiment)
        for place in [*self._made]:
            if place[0] == experiment:
                self._made.pop(place, None)


def _start_again(run: QueuedRun) -> dict[str, Any]:
    """Return the content of ``start`` to create a run again, even if the original is lost."""
    if run.start is None:
        nothing: dict[str, Any] = {"mode": Mode.RESUMED, "time_ms": None, "tags": {}, "name": None}
        return {**nothing, "is_again": True}
    content = run.start
    mode = Mode.LOGGED if content["mode"] in (Mode.NEW, Mode.CLAIMED) else content["mode"]
    return {**content, "mode": mode, "not_before": 0.0, "is_again": True}


def _what_is_missing(content: Mapping[str, Any], parent: str | None) -> str:
    text = "MLflow no longer had the run. What was delivered before is missing."
    if "key" not in content:
        return f"{text} So are its name, tags and parent."
    has_lost_parent = parent is None and content.get("parent") is not None
    return f"{text} So is its parent." if has_lost_parent else text


@contextmanager
def _unless_refused() -> Iterator[None]:
    """Ignore the error if another process has just done the same, or has deleted the run."""
    try:
        yield
    except Exception as error:
        if refusal(error) is None:
            raise
