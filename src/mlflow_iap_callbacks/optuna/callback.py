"""The Optuna callback: what a user calls, and the runs of trials."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import mlflow

from ..delivery.closing import Deadline
from ..delivery.flush_result import IAPFlushResult
from ..delivery.lifecycle import LOCK, close, flush, sender_for
from ..delivery.never_raising import never_raising
from ..delivery.run_creation import CLAIM_SECONDS, Mode
from ..delivery.run_writer import IAPRun, RunWriter, active_experiment, prepare
from ..delivery.summary import Summary
from ..iap.arguments import Callback, check, checked
from ..iap.client import IAPMlflowClient
from ..tags import STUDY_TAG, TRIAL_TAG
from . import failures
from .best_artifacts import HeldArtifact, is_best
from .comparison import comparer
from .reporter import reporter
from .study_key import study_key
from .study_run import StudyRun
from .summary_table import summary_of
from .sync import Lacking, compare, has_begun, own_process_until
from .track_in_mlflow import tracked
from .trial_run import STATUS, log_results, tags_of, to_ms

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

_logger = logging.getLogger("mlflow_iap_callbacks")
_T = TypeVar("_T")

_SECONDS_TO_CLOSE = 60.0  # as for ``flush``: longer than the restart of an App Engine instance
_KNOWN_KWARGS = {"experiment_id", "run_name", "nested", "tags", "description", "parent_run_id"}


class IAPMLflowCallback(Callback):
    """Log each trial of an Optuna study as an MLflow run.

    It replaces ``optuna_integration.MLflowCallback`` and takes its arguments. The run contains the
    trial's params and distributions, values, intermediate values, constraints, user attributes, and
    start and end time. It ends as FINISHED (complete), KILLED (pruned) or FAILED. The study has a
    run too, which is the parent of its trials' runs.

    The study never waits for the server: records are written to a journal on disk and sent in the
    background. Errors are logged as warnings and do not stop the study. The callback can be
    pickled; each process then sends its own records.

    Args:
        tracking_uri: URI of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        metric_name: name of the objective value. For several values, a sequence of names, or one
            name that is numbered (``loss_0``, ``loss_1``). Default: ``study.metric_names`` if set,
            else ``value``.
        create_experiment: log to an experiment with the study's name, which is created if it does
            not exist. If False, log to ``mlflow_kwargs["experiment_id"]``, else to MLflow's active
            experiment (``mlflow.set_experiment``, MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME),
            else to *Default*.
        mlflow_kwargs: ``experiment_id``, ``run_name``, ``tags``, ``description`` and
            ``parent_run_id`` of the trials' runs. With ``nested=True`` the parent is the run that
            is active in MLflow's fluent API.
        tag_study_user_attrs: whether to tag each trial's run with the study's user attributes. Off
            by default, because the study's run has them.
        tag_trial_user_attrs: whether to tag a trial's run with the trial's user attributes.
        experiment_name: experiment to log to, instead of the one with the study's name.
        tags: tags of each run.
        client: an MlflowClient to use instead of ``IAPMlflowClient(tracking_uri)``.
        study_run: whether the study has a run of its own, with the number of trials in each state,
            the best value so far, plots and a table of the trials. If False, the trials' runs have
            no parent, as with ``optuna_integration.MLflowCallback``.

    Raises:
        IAPConfigurationError: the settings cannot work; see ``IAPMlflowClient``.
        TypeError: ``metric_name`` is neither a name nor a sequence of names.

    Examples:
        ```python
        def objective(trial):
            x = trial.suggest_float("x", -10, 10)
            return (x - 2) ** 2

        study = optuna.create_study(study_name="parabola")
        study.optimize(objective, n_trials=100, callbacks=[IAPMLflowCallback()])
        ```
    """

    @checked
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
        for name, value in (mlflow_kwargs or {}).items():
            if name in _KNOWN_KWARGS and value is not None:
                check(name, value)
        self._client = client or IAPMlflowClient(tracking_uri)
        prepare(self._client)
        self._metric_name = metric_name
        self._kwargs = dict(mlflow_kwargs or {})
        unknown = sorted(self._kwargs.keys() - _KNOWN_KWARGS)
        if unknown:
            _logger.warning(
                "mlflow_kwargs has unknown keys, which are ignored: %s. Use some of: %s.",
                ", ".join(unknown),
                ", ".join(sorted(_KNOWN_KWARGS)),
            )
        self._experiment_name, self._create_experiment = experiment_name, create_experiment
        self._tag_study_user_attrs = tag_study_user_attrs
        self._tag_trial_user_attrs = tag_trial_user_attrs
        self._tags = {**dict(self._kwargs.get("tags") or {}), **dict(tags or {})}
        self._tags.pop("mlflow.runName", None)  # the run's name replaces it, as in MLflow
        if "description" in self._kwargs:
            self._tags["mlflow.note.content"] = self._kwargs["description"]
        self._study_run = study_run
        self._reset()

    @checked
    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        with never_raising(f"trial {trial.number}"):
            ended = trial.datetime_complete
            is_fresh = ended is None or time.time() - ended.timestamp() < CLAIM_SECONDS
            study_run = self._run_of_study(study)
            self._log(study_run, trial, study_run.claim if is_fresh else Mode.LOGGED)
            reporter.changed(study_run)

    @checked
    def run(
        self,
        trial: optuna.Trial | optuna.trial.FrozenTrial,
        *,
        study: optuna.Study | None = None,
    ) -> IAPRun:
        """Return a handle for a trial's run, to log more to it from inside the objective.

        The run ends when the trial does.

        Args:
            trial: the trial.
            study: the study; needed only for a FrozenTrial.
        """
        study_run = self._run_of_study(study or getattr(trial, "study"))  # noqa: B009
        return self._run_of_trial(study_run, trial, study_run.claim)

    @checked
    def track_in_mlflow(self) -> Callable[[Callable[[optuna.Trial], _T]], Callable[..., _T]]:
        """Decorate an objective so that MLflow's fluent API and autolog log to the trial's run.

        These calls wait for the server. A run that is active outside the objective stays active
        there. MLflow's tracking URI is set to the callback's.
        """
        return partial(tracked, run_of=self.run, when_failed=self._log_uncaught)

    @checked
    def log_if_best(
        self,
        trial: optuna.Trial,
        local_path: str | Path,
        artifact_path: str | None = None,
    ) -> None:
        """Log a file or folder, such as a model, only if the trial is the best so far.

        It is copied at once. The copy is uploaded when the trial ends, if the trial has the best
        value of the study or, with several objectives, is on the Pareto front.

        Args:
            trial: the running trial.
            local_path: file or folder.
            artifact_path: folder in the run's artifacts. Default: their root.
        """
        with never_raising(f"an artifact of trial {trial.number}"):
            held = HeldArtifact(Path(local_path), artifact_path)
            with LOCK:
                key = (self._run_of_study(trial.study).key, trial.number)
                self._held.setdefault(key, []).append(held)

    @checked
    def log_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Log a trial that has ended, for loops that do not use ``study.optimize``.

        If the trial already has a run, what is missing is added. So this can also end the runs of
        workers that died: ``RDBStorage(url, heartbeat_stale_trial_callback=callback.log_trial)``.

        Args:
            study: the study.
            trial: a COMPLETE, PRUNED or FAIL trial, such as the one that ``study.tell`` returns.
        """
        with never_raising(f"trial {trial.number}"):
            study_run = self._run_of_study(study)
            self._log(study_run, trial, Mode.LOGGED)
            reporter.changed(study_run)

    @checked
    def sync(self, study: optuna.Study) -> int:
        """Log the trials that the callback missed.

        Optuna does not call callbacks after an uncaught exception or Ctrl-C, or for trials from
        ask-and-tell, ``add_trial`` or a killed worker. Trials that ran without the callback are
        logged too. Calling this twice does no harm. If other processes can use the storage, a trial
        that has just ended is left to its own process for 20 seconds.

        Args:
            study: the study. Its RUNNING and WAITING trials are skipped.

        Returns:
            Number of trials logged now. ``flush`` waits until they are delivered.

        Raises:
            MlflowException: the runs in MLflow cannot be read.
        """
        if not has_begun(study.get_trials(deepcopy=False)):
            return 0
        study_run = self._run_of_study(study, is_joined=False)
        found = compare(self._client, study_run.experiment, study_run.key, study_run.unlogged())
        study_run.logged |= found.logged
        now = sender_for(self._client).clock.time()
        for lacking in found.lacking:
            not_before = own_process_until(lacking.trial, now) if study_run.is_shared else 0.0
            self._log_lacking(study_run, lacking, not_before)
        reporter.changed(study_run)
        return len(found.lacking)

    def summary(self) -> Summary:
        """Summarize the studies and the delivery in a table, for ``print`` and for notebooks."""
        return summary_of(list(self._study_runs.values()), sender_for(self._client))

    @checked
    def flush(self, timeout: float | None = 60.0) -> IAPFlushResult:
        """Wait until all records are delivered.

        Args:
            timeout: seconds to wait, None for no limit. The default is longer than the restart of
                an App Engine instance.

        Returns:
            How many records were delivered, wait and were refused. It is true if all were
            delivered. Those that wait are sent later.
        """
        return flush(self._client, timeout)

    def close(self) -> IAPFlushResult:
        """End the studies' runs, deliver all records, and draw the plots, in up to a minute.

        The same happens when the process exits, in up to 30 seconds. If the server is unreachable,
        this gives up after five seconds. The callback can still be used afterwards.

        Returns:
            What was delivered, as for ``flush``.
        """
        study_runs = list(self._study_runs.values())

        def end(deadline: Deadline) -> None:
            reporter.end(deadline, study_runs)
            for study_run in study_runs:
                study_run.close()

        def draw(deadline: Deadline) -> None:
            comparer.compare_in_time(deadline, study_runs)
            reporter.draw_in_time(deadline, study_runs)

        result = close(self._client, _SECONDS_TO_CLOSE, end=end, draw=draw)
        for study_run in study_runs:
            study_run.show_link()
        return result

    def __enter__(self) -> IAPMLflowCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _experiment_of(self, study: optuna.Study) -> str:
        """Experiment for ``RunWriter``; the active one is read when a study starts."""
        if self._experiment_name is not None:
            return f"name:{self._experiment_name}"
        given = self._kwargs.get("experiment_id")
        if given is None and self._create_experiment:
            return f"name:{study.study_name}"
        return active_experiment() if given is None else f"id:{given}"

    def _run_of_study(self, study: optuna.Study, *, is_joined: bool = True) -> StudyRun:
        with LOCK:
            key = self._keys.get(study)
            if key is None:
                key = self._keys[study] = study_key(study)
            study_run = self._study_runs.get(key)
            if study_run is None:
                failures.listen()
                study_run = self._study_runs[key] = StudyRun(
                    study,
                    key,
                    self._client,
                    self._experiment_of(study),
                    metric_name=self._metric_name,
                    tags=self._tags,
                    has_run=self._study_run and self._given_parent() is None,
                )
            study_run.study = study
            if is_joined:
                comparer.joined(study_run, self._client, self._log_lacking)
            return study_run

    def _given_parent(self) -> str | None:
        given = self._kwargs.get("parent_run_id")
        if given is None and self._kwargs.get("nested"):
            active = mlflow.active_run()
            given = None if active is None else active.info.run_id
        return given

    def _run_of_trial(
        self,
        study_run: StudyRun,
        trial: optuna.Trial | optuna.trial.FrozenTrial,
        mode: Mode,
        *,
        tags: Mapping[str, Any] | None = None,
        not_before: float = 0.0,
    ) -> RunWriter:
        key = (study_run.key, trial.number)
        with LOCK:
            run = self._runs.get(key)
            if run is None:
                own_tags = {STUDY_TAG: study_run.key, TRIAL_TAG: trial.number}
                run = self._runs[key] = RunWriter(
                    self._client,
                    study_run.experiment,
                    run_name=self._kwargs.get("run_name", str(trial.number)),
                    start_time=to_ms(trial.datetime_start),
                    tags={**self._tags, **(tags or {}), **own_tags},
                    key=f"{study_run.key}-{trial.number}",
                    mode=Mode.LOGGED if trial.number in study_run.logged else mode,
                    parent=study_run.writer or self._given_parent(),
                    not_before=not_before,
                )
            elif tags:
                run.set_tags(tags)
            return run

    def _log(
        self,
        study_run: StudyRun,
        trial: optuna.trial.FrozenTrial,
        mode: Mode,
        *,
        not_before: float = 0.0,
    ) -> None:
        study = study_run.study
        attrs = {
            **(trial.user_attrs if self._tag_trial_user_attrs else {}),
            **(study.user_attrs if self._tag_study_user_attrs else {}),
        }
        ended = to_ms(trial.datetime_complete) or 0
        run = self._run_of_trial(
            study_run,
            trial,
            mode,
            tags=tags_of(trial, study_run.directions, attrs),
            not_before=not_before,
        )
        log_results(run, trial, study_run.names)
        key = (study_run.key, trial.number)
        held = self._held.pop(key, ())
        is_kept = bool(held) and is_best(study, trial)
        for artifact in held:
            artifact.release(run, is_best=is_kept)
        if trial.state.name == "FAIL" and run.key not in self._failed:
            text = failures.last_failure(trial.number, ended / 1000)
            if text is not None:
                failures.log_failure(run, text)
        run.finish(STATUS.get(trial.state.name, "FAILED"), end_time=ended or None)
        with LOCK:
            self._runs.pop(key, None)
            self._failed.discard(run.key)
            study_run.logged.add(trial.number)

    def _log_lacking(self, study_run: StudyRun, lacking: Lacking, not_before: float) -> None:
        # Several processes may find out at once that a trial has no run.
        is_anyones = study_run.is_shared and not lacking.has_run
        mode = Mode.SHARED if is_anyones else Mode.LOGGED
        with never_raising(f"trial {lacking.trial.number}"):
            self._log(study_run, lacking.trial, mode, not_before=not_before)

    def _log_uncaught(self, run: IAPRun, error: BaseException) -> None:
        failures.log_failure(run, failures.traceback_of(error))
        self._failed.add(run.key)

    def _reset(self) -> None:
        self._keys: WeakKeyDictionary[optuna.Study, str] = WeakKeyDictionary()
        self._study_runs: dict[str, StudyRun] = {}
        # By the study's key and the trial's number.
        self._runs: dict[tuple[str, int], RunWriter] = {}
        self._held: dict[tuple[str, int], list[HeldArtifact]] = {}
        self._failed: set[str] = set()  # keys of runs whose traceback is logged

    def __getstate__(self) -> dict[str, Any]:
        left = ("_keys", "_study_runs", "_runs", "_held", "_failed")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
