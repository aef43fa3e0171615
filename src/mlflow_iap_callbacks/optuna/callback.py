"""The callback that makes a run of each Optuna trial, and one of their study."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import mlflow

from ..delivery.lifecycle import LOCK, sender_for
from ..delivery.run_creation import CLAIM_SECONDS, Mode
from ..delivery.run_writer import RunWriter, active_experiment, prepare
from ..iap.client import IAPMlflowClient
from ..tags import ENDED_TAG, STATE_TAG, STUDY_TAG, TRIAL_TAG
from . import failures as optuna_failures
from .reporter import reporter
from .study_run import StudyLog
from .summary import Summary
from .trials import (
    INTERMEDIATE,
    STATUS,
    curve_of,
    metrics_of,
    study_key,
    tags_of,
    to_ms,
)

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Seconds after a trial's end in which its own process may still make the run of it.
_OTHERS_SECONDS = CLAIM_SECONDS + 15.0
_KNOWN_KWARGS = {"experiment_id", "run_name", "nested", "tags", "description", "parent_run_id"}


class IAPMLflowCallback:
    """Optuna callback that makes a run of each trial: ``study.optimize(..., callbacks=[...])``.

    It takes the place of ``optuna_integration.MLflowCallback`` and its arguments; docs/migration.md
    of the project says what differs. A run carries the trial's params with their distributions, its
    values, what it reported, its constraints, state and user attributes, its own start and end, and
    ends FINISHED (complete), KILLED (pruned) or FAILED. The study has a run too, their parent.

    Args:
        tracking_uri: of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        metric_name: of the value; with a number behind it for each of several, or a name for each.
            Default: ``study.metric_names``, else ``value``.
        create_experiment: log to the experiment that is called as the study, made where it does not
            exist. If False: ``mlflow_kwargs["experiment_id"]``, else MLflow's active experiment
            (``mlflow.set_experiment``, MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME), else
            *Default*.
        mlflow_kwargs: ``experiment_id``, ``run_name``, ``tags``, ``description``,
            ``parent_run_id`` of the runs; ``nested=True`` puts them under the fluent run that is
            active in the callback's thread, if one is.
        tag_study_user_attrs: whether the study's user attributes become tags of each run.
        tag_trial_user_attrs: whether the trial's do.
        experiment_name: experiment of the runs, instead of the study's name.
        tags: given to each run.
        client: any MlflowClient, instead of an ``IAPMlflowClient`` for ``tracking_uri``.
        study_run: whether the study has a run of its own, with the counts of its trials, the best
            of them and pictures, and is the parent of theirs. False for runs side by side, as
            optuna_integration's.

    Raises:
        IAPConfigurationError: as ``IAPMlflowClient``.
        TypeError: ``metric_name`` is no name, nor a sequence of names.

    Nothing is sent while the study waits: what is logged goes to a journal on disk, and from there
    to MLflow in the background. What goes wrong is logged as a warning once and never raised into
    the study. It travels to other processes by pickle, and delivers in each for itself.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        metric_name: str | Sequence[str] | None = None,
        create_experiment: bool = True,
        mlflow_kwargs: Mapping[str, Any] | None = None,
        tag_study_user_attrs: bool = False,
        tag_trial_user_attrs: bool = True,
        *,
        experiment_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        client: MlflowClient | None = None,
        study_run: bool = True,
    ) -> None:
        if metric_name is not None and not isinstance(metric_name, Sequence):
            raise TypeError(
                f"metric_name is {metric_name!r}. Give a name, or a sequence of one for each value."
            )
        self._client = client or IAPMlflowClient(tracking_uri)
        prepare(self._client)
        self._metric_name = metric_name
        self._kwargs = dict(mlflow_kwargs or {})
        unknown = sorted(self._kwargs.keys() - _KNOWN_KWARGS)
        if unknown:
            _logger.warning(
                "mlflow_kwargs has %s, which have no meaning here. Known are %s.",
                ", ".join(unknown),
                ", ".join(sorted(_KNOWN_KWARGS)),
            )
        self._experiment_name, self._create_experiment = experiment_name, create_experiment
        self._tag_study_user_attrs = tag_study_user_attrs
        self._tag_trial_user_attrs = tag_trial_user_attrs
        self._tags = {**dict(self._kwargs.get("tags") or {}), **dict(tags or {})}
        self._tags.pop("mlflow.runName", None)  # superseded by the run's name, as MLflow does
        if "description" in self._kwargs:
            self._tags["mlflow.note.content"] = self._kwargs["description"]
        self._study_run = study_run
        self._reset()

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        with _telling(trial.number):
            ended = trial.datetime_complete
            is_fresh = ended is None or time.time() - ended.timestamp() < CLAIM_SECONDS
            log = self._study_log(study)
            self._log(log, trial, log.claim if is_fresh else Mode.LOGGED)

    def run(
        self,
        trial: optuna.Trial | optuna.trial.FrozenTrial,
        *,
        study: optuna.Study | None = None,
    ) -> RunWriter:
        """The trial's run, to write to from inside the objective; finished when the trial is.

        Args:
            trial: as the objective gets it.
            study: of the trial; needed for a FrozenTrial only.
        """
        study = study or getattr(trial, "study")  # noqa: B009 - a FrozenTrial has none
        log = self._study_log(study)
        return self._run(log, trial, log.claim)

    def track_in_mlflow(self) -> Callable[[Callable[[optuna.Trial], _T]], Callable[..., _T]]:
        """Decorator of an objective: what it logs by ``mlflow.log_metric``, autolog and the like
        lands in the trial's run.

        The objective waits for the server only where it calls MLflow itself. A fluent run that is
        active around it is left alone. The tracking URI of the fluent API becomes the callback's.
        """

        def decorator(objective: Callable[[optuna.Trial], _T]) -> Callable[..., _T]:
            @functools.wraps(objective)
            def tracked(trial: optuna.Trial) -> _T:
                from optuna import TrialPruned

                from .active_run import active

                run = self.run(trial)
                with active(run):
                    try:
                        return objective(trial)
                    except TrialPruned:
                        raise
                    except BaseException as error:
                        # Here, for no callback is called for what the study does not catch.
                        _log_failure(run, optuna_failures.text_of(error))
                        self._told.add(run.key)
                        raise

            return tracked

        return decorator

    def log_if_best(
        self,
        trial: optuna.Trial,
        local_path: str | Path,
        artifact_path: str | None = None,
    ) -> None:
        """Upload a file or folder, a model say, if the trial turns out as the best so far.

        It is copied at once, and uploaded to the trial's run when the trial ends: if its value is
        the study's best then or, of several objectives, if it is on the Pareto front.

        Args:
            trial: as the objective gets it.
            local_path: of the file or folder.
            artifact_path: folder in the run's artifacts. Default: their root.
        """
        with _telling(trial.number):
            held = _Held(Path(local_path), artifact_path)
            with LOCK:
                key = (self._study_log(trial.study).key, trial.number)
                self._held.setdefault(key, []).append(held)

    def log_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Log a trial that has ended, for loops of one's own:
        ``callback.log_trial(study, study.tell(trial, value))``.

        It may have a run already; what that lacks is added. So it also closes the run of a trial
        whose worker died: ``RDBStorage(heartbeat_stale_trial_callback=callback.log_trial)``.

        Args:
            study: of the trial.
            trial: COMPLETE, PRUNED or FAIL.
        """
        with _telling(trial.number):
            self._log(self._study_log(study), trial, Mode.LOGGED)

    def sync(self, study: optuna.Study) -> int:
        """Bring MLflow to what the study's storage says of the trials that have ended.

        For trials that no callback saw: an uncaught exception, Ctrl-C, ask and tell,
        ``add_trial``, a killed worker, a study that is older than the callback. Twice changes
        nothing. A trial that has just ended in a storage that other processes use is left to its
        own process for 20 seconds.

        Args:
            study: any; its trials that are RUNNING or WAITING are left alone.

        Returns:
            How many trials are logged by this. ``flush`` waits until they are delivered.

        Raises:
            MlflowException: MLflow cannot be asked what it has.
        """
        trials = study.get_trials(deepcopy=False)
        # Until the first trial starts, a study cannot be told from others of its name.
        if not trials or trials[0].datetime_start is None:
            return 0
        log = self._study_log(study)
        found = self._runs_in_mlflow(log)
        count = 0
        for trial in trials:
            if (
                trial.state.is_finished()
                and trial.number not in log.logged
                and not _is_logged(found.get(trial.number), trial)
            ):
                with _telling(trial.number):
                    self._log(log, trial, Mode.LOGGED, is_of_others=log.is_shared)
                count += 1
        reporter.changed(log)
        return count

    def summary(self) -> Summary:
        """What came of it so far, as a table for a terminal (``print``) and for a notebook."""
        sender = sender_for(self._client)
        rows = {}
        for log in list(self._studies.values()):
            counts = log.counts()
            states = ", ".join(f"{number} {state}" for state, number in counts.items())
            rows[f"study {log.study.study_name}"] = states
            if log.best():
                rows["best"] = log.best()
            if log.link:
                rows["look"] = log.link
        rows["delivered"] = f"{sender.delivered} records to {sender.server}"
        rows["waiting"] = f"{sender.waiting} records"
        refused = sum(outbox.refusals() for outbox in sender.outboxes)
        rows["refused"] = f"{refused}" + (" (`mlflow-iap status` says why)" if refused else "")
        return Summary(rows)

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until all that was logged is delivered.

        Args:
            timeout: seconds. Default: a minute, which outlasts the restart of an App Engine
                instance; None for as long as it takes.

        Returns:
            Whether all was delivered, or refused by MLflow for good. What was not stays queued.
        """
        return sender_for(self._client).flush(timeout)

    def close(self) -> bool:
        """Log the studies' last state, draw the pictures, end the studies' runs, and ``flush``.

        All of that happens at the end of the process too. The callback can be used again.

        Returns:
            As ``flush``.
        """
        logs = list(self._studies.values())
        reporter.report(with_pictures=True, only=logs)
        for log in logs:
            log.close()
        is_done = self.flush()
        for log in logs:
            log.show_link()
        return is_done

    def __enter__(self) -> IAPMLflowCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _experiment_of(self, study: optuna.Study) -> str:
        """As ``RunWriter`` takes it; MLflow's active one may be set when a study begins."""
        if self._experiment_name is not None:
            return f"name:{self._experiment_name}"
        given = self._kwargs.get("experiment_id")
        if given is None and self._create_experiment:
            return f"name:{study.study_name}"
        return active_experiment() if given is None else f"id:{given}"

    def _study_log(self, study: optuna.Study) -> StudyLog:
        with LOCK:
            key = self._keys.get(study)
            if key is None:
                key = self._keys[study] = study_key(study)
            log = self._studies.get(key)
            if log is None:
                optuna_failures.listen()
                log = self._studies[key] = StudyLog(
                    study,
                    key,
                    self._client,
                    self._experiment_of(study),
                    metric_name=self._metric_name,
                    tags=self._tags,
                    has_run=self._study_run and self._outer_run() is None,
                )
            log.study = study
            return log

    def _outer_run(self) -> str | None:
        """The run that the user wants the trials' to be under."""
        given = self._kwargs.get("parent_run_id")
        if given is None and self._kwargs.get("nested"):
            active = mlflow.active_run()
            given = None if active is None else active.info.run_id
        return given

    def _run(
        self,
        log: StudyLog,
        trial: optuna.Trial | optuna.trial.FrozenTrial,
        mode: Mode,
        *,
        tags: Mapping[str, Any] | None = None,
        not_before: float = 0.0,
    ) -> RunWriter:
        key = (log.key, trial.number)
        with LOCK:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = RunWriter(
                    self._client,
                    log.experiment,
                    run_name=self._kwargs.get("run_name", str(trial.number)),
                    start_time=to_ms(trial.datetime_start),
                    tags={
                        **self._tags,
                        **(tags or {}),
                        STUDY_TAG: log.key,
                        TRIAL_TAG: trial.number,
                    },
                    key=f"{log.key}-{trial.number}",
                    mode=Mode.LOGGED if trial.number in log.logged else mode,
                    parent=log.run or self._outer_run(),
                    not_before=not_before,
                )
            elif tags:
                run.set_tags(tags)
            return run

    def _log(
        self,
        log: StudyLog,
        trial: optuna.trial.FrozenTrial,
        mode: Mode,
        *,
        is_of_others: bool = False,
    ) -> None:
        attrs = {
            **(trial.user_attrs if self._tag_trial_user_attrs else {}),
            **(log.study.user_attrs if self._tag_study_user_attrs else {}),
        }
        ended = to_ms(trial.datetime_complete) or 0
        run = self._run(
            log,
            trial,
            mode,
            tags=tags_of(trial, log.directions, attrs),
            not_before=ended / 1000 + _OTHERS_SECONDS if is_of_others else 0.0,
        )
        if trial.params:
            run.log_suggestions(trial.params)
        metrics = metrics_of(trial, log.naming)
        if metrics:
            run.log_metrics(metrics, timestamp=ended)
        if trial.intermediate_values:
            run.log_curve(INTERMEDIATE, curve_of(trial), timestamp=ended)
        key = (log.key, trial.number)
        held = self._held.pop(key, ())
        is_best = bool(held) and _is_best(log.study, trial)
        for artifact in held:
            if is_best:
                run.log_artifact(artifact.path, artifact.to)
            artifact.folder.cleanup()
        if trial.state.name == "FAIL" and run.key not in self._told:
            text = optuna_failures.heard(trial.number, ended / 1000)
            if text is not None:
                _log_failure(run, text)
        run.finish(STATUS.get(trial.state.name, "FAILED"), end_time=ended or None)
        with LOCK:
            self._runs.pop(key, None)
            self._told.discard(run.key)
            log.logged.add(trial.number)
        reporter.changed(log)

    def _runs_in_mlflow(self, log: StudyLog) -> dict[int, Run]:
        from mlflow.entities import ViewType

        kind, _, text = log.experiment.partition(":")
        if kind == "name":
            experiment = self._client.get_experiment_by_name(text)
            if experiment is None:
                return {}
            text = experiment.experiment_id
        found: dict[int, Run] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [text],
                f"tags.`{STUDY_TAG}` = '{log.key}'",
                ViewType.ALL,
                max_results=1000,
                page_token=token,
            )
            for run in page:
                if TRIAL_TAG in run.data.tags:
                    found[int(run.data.tags[TRIAL_TAG])] = run
            token = page.token
            if not token:
                return found

    def _reset(self) -> None:
        self._keys: WeakKeyDictionary[optuna.Study, str] = WeakKeyDictionary()
        self._studies: dict[str, StudyLog] = {}
        self._runs: dict[tuple[str, int], RunWriter] = {}
        self._held: dict[tuple[str, int], list[_Held]] = {}
        self._told: set[str] = set()  # keys of runs whose trial's failure is logged

    def __getstate__(self) -> dict[str, Any]:
        left = ("_keys", "_studies", "_runs", "_held", "_told")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class _Held:
    """A copy of a file or folder, until it is known whether it is wanted."""

    def __init__(self, path: Path, to: str | None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mlflow-iap-held-")
        self.path = Path(self.folder.name) / path.resolve().name
        self.to = to
        if path.is_dir():
            shutil.copytree(path, self.path)
        else:
            shutil.copy2(path, self.path)


@contextmanager
def _telling(number: int) -> Iterator[None]:
    """No study ends because of its log."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        _logger.warning("Trial %d was not logged: %s", number, error)


def _log_failure(run: RunWriter, text: str) -> None:
    run.set_tags({"error": text.strip().rpartition("\n")[2]})
    run.log_text(text, "traceback.txt")


def _is_best(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
    if trial.state.name != "COMPLETE":
        return False
    best = study.best_trials  # of one objective, too
    return any(each.number == trial.number for each in best)


def _is_logged(run: Run | None, trial: optuna.trial.FrozenTrial) -> bool:
    return (
        run is not None
        and run.data.tags.get(STATE_TAG) == trial.state.name
        and run.info.status == STATUS[trial.state.name]
        and ENDED_TAG not in run.data.tags  # its process died in the middle of it
    )
