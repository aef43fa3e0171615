"""Finds the ended trials of a study that are missing in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mlflow.entities import LifecycleStage, Run, ViewType
from mlflow.store.entities import PagedList

from ..delivery.run_creation import CLAIM_SECONDS
from ..iap.retry_policy import RetryPolicy
from ..tags import RUN_KEY_TAG, STUDY_TAG
from .logged_trial import TrialsByRun, is_complete, to_ms_of_start
from .study_key import TrialId, trial_key
from .trial_run import to_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

SECONDS_FOR_OWN_PROCESS = CLAIM_SECONDS + 15.0
# For one request, retries included.
RETRY = RetryPolicy(deadline=20.0)
_RUNS_OF_A_PAGE = 1000
# The most that local times of two machines differ, in milliseconds.
_MOST_MS_APART = 26 * 3_600_000


class Lacking(NamedTuple):
    """A trial that MLflow lacks, and the key of its run, if that is incomplete."""

    trial: FrozenTrial
    key: str
    has_run: bool


class Comparison(NamedTuple):
    """The trials that MLflow lacks, and those that it has."""

    lacking: list[Lacking]
    logged: set[TrialId]


def compare(
    client: MlflowClient,
    experiment: str,
    key: str,
    trials: Iterable[FrozenTrial],
    *,
    is_enough: Callable[[int], bool] = lambda pages: False,
) -> Comparison:
    """Find the ended trials that have no run, or one that lacks their results or their state.

    A run that was deleted stays deleted.

    Args:
        client: a client of the server.
        experiment: the experiment of the runs, as for ``RunWriter``.
        key: key of the study.
        trials: trials of the study that have ended.
        is_enough: whether this many requests, each for 1,000 runs, are enough. The newest runs come
            first, and trials that began before all the runs read are left out.

    Raises:
        MlflowException: the runs in MLflow cannot be read.
    """
    wanted = {TrialId.of(trial): trial for trial in trials}
    index = TrialsByRun(key, wanted.values())
    found: dict[TrialId, list[Run]] = {}
    logged: set[TrialId] = set()
    experiment_id = _experiment_id(client, experiment) if wanted else None
    if experiment_id is not None:
        since = min(map(to_ms_of_start, wanted.values())) - _MOST_MS_APART
        for number, page in enumerate(pages_of_runs(client, [experiment_id], key), start=1):
            for run in page:
                trial = index.trial_of(run)
                if trial is not None:
                    found.setdefault(TrialId.of(trial), []).append(run)
                    if _is_active(run) and is_complete(run, trial):
                        logged.add(TrialId.of(trial))
            reached = page[-1].info.start_time if page else 0
            if len(logged) == len(wanted) or reached < since:
                break
            if page.token and is_enough(number):
                wanted = {i: t for i, t in wanted.items() if to_ms_of_start(t) >= reached}
                break
    # Trials whose runs were all deleted; of duplicate runs, one was kept.
    logged |= {i for i, runs in found.items() if not any(map(_is_active, runs))}
    lacking = [_lacking(key, t, found.get(i, ())) for i, t in wanted.items() if i not in logged]
    return Comparison(lacking, logged)


def has_old_run(client: MlflowClient, experiment: str, trial: FrozenTrial) -> bool:
    """Whether ``optuna_integration.MLflowCallback`` has logged the trial to the experiment.

    Raises:
        MlflowException: MLflow cannot be read.
    """
    experiment_id = _experiment_id(client, experiment)
    if experiment_id is None:
        return False
    tags = {"number": trial.number, "datetime_start": trial.datetime_start}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = RETRY(partial(client.search_runs, [experiment_id], query, ViewType.ALL))
    return any(STUDY_TAG not in run.data.tags for run in found)


def pages_of_runs(
    client: MlflowClient, experiment_ids: list[str], key: str
) -> Iterator[PagedList[Run]]:
    """Yield the runs of a study and its trials, deleted ones included, the newest first.

    Raises:
        MlflowException: MLflow cannot be read.
    """
    query = f"tags.`{STUDY_TAG}` = '{key}'"
    token = None
    while True:
        page = RETRY(
            partial(
                client.search_runs,
                experiment_ids,
                query,
                ViewType.ALL,
                max_results=_RUNS_OF_A_PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
        )
        yield page
        token = page.token
        if not token:
            return


def has_begun(trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial of the study has started; before that, the study has no key."""
    return bool(trials) and trials[0].datetime_start is not None


def own_process_until(trial: FrozenTrial, now: float) -> float:
    """Return when a trial's run is no longer left to its own process, in seconds since 1970.

    The trial may seem to end after ``now``, by the clock or the time zone of another machine.
    """
    ended = (to_ms(trial.datetime_complete) or 0) / 1000
    return min(ended, now) + SECONDS_FOR_OWN_PROCESS


def _experiment_id(client: MlflowClient, experiment: str) -> str | None:
    kind, _, text = experiment.partition(":")
    if kind == "id":
        return text
    found = RETRY(partial(client.get_experiment_by_name, text))
    return None if found is None else str(found.experiment_id)


def _lacking(key: str, trial: FrozenTrial, runs: Sequence[Run]) -> Lacking:
    own = trial_key(key, trial)
    keys = [run.data.tags[RUN_KEY_TAG] for run in runs if _is_active(run)]
    return Lacking(trial, own if own in keys or not keys else keys[0], has_run=bool(keys))


def _is_active(run: Run) -> bool:
    return bool(run.info.lifecycle_stage == LifecycleStage.ACTIVE)
