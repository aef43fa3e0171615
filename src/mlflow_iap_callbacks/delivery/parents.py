"""The parents of runs: runs that several processes share, and that may not exist yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from mlflow import MlflowClient

from ..iap.run_lookup import find_runs
from ..outbox import QueuedRun
from .clock import Clock
from .refusals import NotYet

# As QueuedRun.place: the experiment and key of a run.
Place = tuple[str, str]

# Seconds for which a run waits for a parent that does not exist.
_SECONDS_TO_APPEAR = 60.0


class Parents:
    """Knows the ids of parents, or looks them up.

    Args:
        client: returns the client of the server, which may change.
        clock: tells the time.
        recovered: finds or creates a queued run that the server lost; None if it stays lost.
    """

    def __init__(
        self,
        client: Callable[[], MlflowClient],
        clock: Clock,
        recovered: Callable[[QueuedRun], str | None],
    ) -> None:
        self._client = client
        self._clock = clock
        self._recovered = recovered
        self._ids: dict[Place, str | None] = {}  # None for one that does not exist
        self._refused: set[Place] = set()  # MLflow rejected it, in this journal or another
        # Shared runs that are not agreed on yet.
        self._awaited: defaultdict[Place, set[QueuedRun]] = defaultdict(set)
        self._missed: dict[Place, float] = {}  # when each missing one was first looked for

    def await_run(self, run: QueuedRun) -> None:
        """Let the children of a run wait until processes have agreed on it."""
        self._awaited[run.place].add(run)

    def found(self, run: QueuedRun) -> None:
        """Use this run for its children."""
        self._ids[run.place] = run.run_id
        self._awaited[run.place].discard(run)

    def refused(self, run: QueuedRun) -> None:
        """Note that the run will never be created, so that its children do not wait for it."""
        # Other processes may have another run with the same key.
        self._ids.pop(run.place, None)
        self._refused.add(run.place)
        self._awaited[run.place].discard(run)

    def forget(self, experiment: str) -> None:
        """Forget the runs of an experiment, which the server may have lost."""
        for place, run_id in [*self._ids.items()]:
            if place[0] == experiment and run_id is not None:
                self._ids.pop(place, None)

    def id_of(self, child: QueuedRun, key: str, experiment_id: str) -> str | None:
        """Return MLflow's id of a run's parent; None if there is none.

        Args:
            child: the run.
            key: run key of the parent.
            experiment_id: MLflow's id of their experiment.

        Raises:
            NotYet: the parent does not exist yet.
        """
        place = (child.experiment, key)
        if place in self._ids:
            return self._ids[place]
        if not self._awaited.get(place):
            found = find_runs(self._client(), experiment_id, key)
            if found:
                self._ids[place] = str(found[0].info.run_id)
                return self._ids[place]
            if place in self._refused:
                self._ids[place] = None
                return None
            queued = next((each for each in child.outbox.runs() if each.place == place), None)
            if queued is None or queued.run_id is not None:
                return self._missing(place, queued)
        raise NotYet("The run's parent does not exist yet.", 0.5)

    def _missing(self, place: Place, queued: QueuedRun | None) -> str | None:
        recovered = None if queued is None else self._recovered(queued)
        if recovered is not None:
            return recovered
        now = self._clock.monotonic()
        wait = self._missed.setdefault(place, now) + _SECONDS_TO_APPEAR - now
        if wait > 0:
            raise NotYet("The run's parent does not exist.", min(wait, 5.0))
        self._ids[place] = None
        return None
