"""The Optuna callback: what a user calls, and the runs of trials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import mlflow

from ..delivery.clock import now_ms
from ..delivery.closing import Deadline
from ..delivery.ended_run import log_ended_run
from ..delivery.flush_result import IAPFlushResult
from ..delivery.lifecycle import LOCK, close, flush, sender_for
from ..delivery.never_raising import never_raising, warn_of
from ..delivery.run import SECONDS_TO_CLOSE, IAPRun, experiment_of, prepare
from ..delivery.run_creation import CLAIM_SECONDS, Mode
from ..delivery.run_writer import RunWriter
from ..delivery.summary import Summary
from ..iap.arguments import Callback, check, checked
from ..iap.client import IAPMlflowClient
from ..tags import STATE_TAG, STUDY_TAG, TRIAL_TAG
from . import failures
from .best_artifacts import HeldArtifact, is_best
from .comparison import comparer
from .experiment_names import experiment_name_of
from .reporter import reporter
from .shared_file import warn_of_shared_file
from .study_key import (
    TrialId,
    ended_trial,
    former_trial_key,
    is_in,
    study_key,
    trial_key,
    trials_of,
)
from .study_object import whole_study, without_objects
from .study_run import StudyRun
from .summary_table import summary_of
from .sync import Comparison, Lacking, compare, has_begun, own_process_until
from .track_in_mlflow import tracked
from .trial_run import STATUS, log_results, metric_names, results_of, tags_of, to_ms
from .unlogged_run import UnloggedRun

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

_logger = logging.getLogger("mlflow_iap_callbacks")
_T = TypeVar("_T")

_SECONDS_FOR_OTHER_JOURNALS = 10.0
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
        ValueError: MLflow accepts no experiment with the name ``experiment_name``.

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
                "mlflow_kwargs has unknown keys, which are ignored: %s. The known keys are: %s.",
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
        try:  # takes less time than never_raising
            study_run = self._run_of_study(study)
            self._log(study_run, trial)
            reporter.changed(study_run)
        except Exception as error:  # noqa: BLE001
            warn_of(f"trial {trial.number}", error)

    @checked
    def run(
        self,
        trial: optuna.Trial | optuna.trial.FrozenTrial,
        *,
        study: optuna.Study | None = None,
    ) -> IAPRun:
        """Return a handle for a trial's run, to log more to it from inside the objective.

        The run ends when the trial does.

        A FixedTrial, and a FrozenTrial without ``study``, such as ``study.best_trial``, have no
        run: what is logged to the handle is dropped, and a warning says so once.

        Args:
            trial: the trial.
            study: the study; needed only for a FrozenTrial.
        """
        run = self._run_in_study(trial, study)
        if run is None and not hasattr(trial, "study"):
            self._warn_once(
                "A %s does not know its study, so nothing is logged for it. If it is a trial of a "
                "study, such as `study.best_trial`, use `callback.run(trial, study=study)`.",
                type(trial).__name__,
            )
        return run or UnloggedRun(self._client)

    @checked
    def study_run(self, study: optuna.Study) -> IAPRun:
        """Return a handle for a study's run, for example to log the final model to it.

        The run ends with ``close``, or when the process exits.

        Args:
            study: a study with at least one trial.

        Raises:
            ValueError: the study has no trial yet, or its run was switched off.
        """
        if not study.get_trials(deepcopy=False):
            raise ValueError(
                f"The study {study.study_name!r} has no run yet. Call this after the first trial."
            )
        study_run = self._run_of_study(study)
        if study_run.writer is None:
            raise ValueError(
                "The study has no run. Create the callback without `study_run=False`, `nested` and "
                "`parent_run_id`."
            )
        study_run.reopen()
        reporter.changed(study_run)
        return study_run.writer

    @checked
    def track_in_mlflow(self) -> Callable[[Callable[[optuna.Trial], _T]], Callable[..., _T]]:
        """Decorate an objective so that MLflow's fluent API and autolog log to the trial's run.

        These calls wait for the server. A run that is active outside the objective stays active
        there. MLflow's tracking URI is set to the callback's. Runs that the objective leaves open
        end with it. If system metrics are switched on, they are logged too.

        With a FixedTrial or FrozenTrial, such as in ``objective(study.best_trial)``, the trial has
        no run, and the fluent API logs to the run that is active outside, or to a new one.
        """
        return partial(tracked, run_of=self._run_to_track, when_failed=self._log_uncaught)

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
            if not hasattr(trial, "study"):
                self.run(trial)  # warns
                return
            key = trial_key(self._run_of_study(trial.study).key, trial)
            held = HeldArtifact(Path(local_path), artifact_path)
            with LOCK:
                self._held.setdefault(key, []).append(held)

    @checked
    def log_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Log a trial that has ended, if your own loop is used instead of ``study.optimize``.

        If the trial already has a run, what is missing is added. So this can also end the runs of
        workers that died: ``RDBStorage(url, heartbeat_stale_trial_callback=callback.log_trial)``.

        Args:
            study: the study.
            trial: a COMPLETE, PRUNED or FAIL trial, such as the one that ``study.tell`` returns.
        """
        with never_raising(f"trial {trial.number}"):
            if not is_in(study, trial):
                raise ValueError(
                    "it is not in the study; add it with `study.add_trial(trial)`, and log it with "
                    "`callback.sync(study)`"
                )
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
        try:
            trials = trials_of(study)
        except KeyError:  # raised by all storages
            _logger.warning(
                "Study %r is not in its storage, so none of its trials were logged. If it was "
                "deleted by mistake, create it again.",
                study.study_name,
            )
            return 0
        if not has_begun(trials):
            return 0
        study_run = self._run_of_study(study, is_joined=False)
        found = self._compare(study_run)
        sender = sender_for(self._client)
        if found.lacking:
            # Journals of processes that died may have them.
            sender.adopt_safely(_SECONDS_FOR_OTHER_JOURNALS)
            sender.flush(_SECONDS_FOR_OTHER_JOURNALS)
            found = self._compare(study_run)
        now = sender.clock.time()
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
            timeout: seconds to wait; None for no limit. The default is longer than an App Engine
                instance takes to restart.

        Returns:
            How many records were delivered, are waiting, and were refused. The result is true if
            all were delivered. Those that are waiting are sent later.
        """
        self._release_unheld()
        return flush(self._client, timeout)

    def close(self) -> IAPFlushResult:
        """End the studies' runs, deliver all records, and draw the plots, in up to a minute.

        The same happens when the process exits, in up to 30 seconds. If the server is unreachable,
        this gives up after five seconds. The callback can still be used afterwards.

        Returns:
            What was delivered, as for ``flush``.
        """
        self._release_unheld()
        study_runs = list(self._study_runs.values())

        def end(deadline: Deadline) -> None:
            reporter.end(deadline, study_runs)
            for study_run in study_runs:
                study_run.close()

        def draw(deadline: Deadline) -> None:
            comparer.compare_in_time(deadline, study_runs)
            reporter.draw_at_close(deadline, study_runs)

        result = close(self._client, SECONDS_TO_CLOSE, end=end, draw=draw)
        for study_run in study_runs:
            study_run.show_link()
        return result

    def __enter__(self) -> IAPMLflowCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _experiment_of(self, study: optuna.Study) -> str:
        """Experiment for ``RunWriter``; the active one is read when a study starts."""
        name, given = self._experiment_name, self._kwargs.get("experiment_id")
        if name is None and given is not None:
            return f"id:{given}"
        if name is None and self._create_experiment:
            name = experiment_name_of(study)
        return experiment_of(name)

    def _run_of_study(self, study: optuna.Study, *, is_joined: bool = True) -> StudyRun:
        with LOCK:
            study_run, whole = self._studies.get(study) or (None, whole_study(study))
            if study_run is None:
                self._release_unheld()
                key = study_key(whole)
                study_run = self._study_runs.get(key)
                if study_run is None:
                    study_run = self._study_runs[key] = self._new_run_of_study(whole, key)
                self._studies[study] = (study_run, whole)
            study_run.study = whole
            if is_joined:
                comparer.joined(study_run, self._client, self._log_lacking)
            return study_run

    def _new_run_of_study(self, study: optuna.Study, key: str) -> StudyRun:
        warn_of_shared_file(study, self._client.tracking_uri)
        return StudyRun(
            study,
            key,
            self._client,
            self._experiment_of(study),
            metric_name=self._metric_name,
            tags=self._tags,
            has_run=self._study_run and self._given_parent() is None,
        )

    def _release_unheld(self) -> None:
        """Replace the objects in the attributes of in-memory studies that nobody else holds."""
        with LOCK:
            held = [study_run for study_run, _ in self._studies.values()]
            for key, study_run in self._study_runs.items():
                if not (study_run.is_shared or study_run in held or key in self._released):
                    with never_raising(f"study {study_run.study.study_name!r}"):
                        study_run.study = without_objects(study_run.study)
                    self._released.add(key)

    def _compare(self, study_run: StudyRun) -> Comparison:
        found = compare(self._client, study_run.experiment, study_run.key, study_run.unlogged())
        study_run.logged |= found.logged
        return found

    def _run_in_study(
        self, trial: optuna.Trial | optuna.trial.FrozenTrial, study: optuna.Study | None
    ) -> RunWriter | None:
        """Return the run of a trial; None if it has none."""
        failures.listen()
        own = getattr(trial, "study", None)
        study = own or study
        with never_raising(f"trial {trial.number}"):
            if study is not None and (own is not None or is_in(study, trial)):
                study_run = self._run_of_study(study)
                known = self._runs.get(trial_key(study_run.key, trial))
                ended = None if known else ended_trial(study, trial)
                run = self._run_of_trial(
                    study_run, trial, Mode.LOGGED if ended else study_run.claim
                )
                if ended is not None:
                    run.finish(STATUS[ended.state.name], end_time=to_ms(ended.datetime_complete))
                return run
        return None

    def _run_to_track(self, trial: optuna.Trial) -> RunWriter | None:
        run = self._run_in_study(trial, None)
        if run is None and not hasattr(trial, "study"):
            self._warn_once(
                "A %s does not know its study, so it has no run. The objective's calls to "
                "MLflow's fluent API log to the active run, or to a new one. To choose the run, "
                "call the objective inside `with mlflow.start_run():`.",
                type(trial).__name__,
            )
        return run

    def _warn_once(self, text: str, *args: object) -> None:
        if text not in self._said:
            self._said.add(text)
            _logger.warning(text, *args)

    def _given_parent(self) -> str | None:
        given = self._kwargs.get("parent_run_id")
        if given is None and self._kwargs.get("nested"):
            active = mlflow.active_run()
            given = None if active is None else active.info.run_id
        return given

    def _run_of_trial(
        self, study_run: StudyRun, trial: optuna.Trial | optuna.trial.FrozenTrial, mode: Mode
    ) -> RunWriter:
        trial_id = TrialId.of(trial)
        key = trial_id.run_key(study_run.key)
        with LOCK:
            if key not in self._runs:
                start = self._start_of_trial(study_run, trial, trial_id, key, mode, {})
                self._runs[key] = RunWriter(self._client, study_run.experiment, **start)
            return self._runs[key]

    def _start_of_trial(
        self,
        study_run: StudyRun,
        trial: optuna.Trial | optuna.trial.FrozenTrial,
        trial_id: TrialId,
        key: str,
        mode: Mode,
        tags: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return how the run of a trial starts, for ``RunWriter`` and ``log_ended_run``."""
        is_logged = mode is Mode.LOGGED or trial_id in study_run.logged
        return {
            "key": key,
            "run_name": self._kwargs.get("run_name", str(trial.number)),
            "start_time": to_ms(trial.datetime_start),
            "tags": {**self._tags, **tags, STUDY_TAG: study_run.key, TRIAL_TAG: trial.number},
            "mode": Mode.LOGGED if is_logged else mode,
            "parent": study_run.writer or self._given_parent(),
            "former_key": former_trial_key(study_run.key, trial.number) if is_logged else None,
        }

    def _log(
        self,
        study_run: StudyRun,
        trial: optuna.trial.FrozenTrial,
        mode: Mode | None = None,
        *,
        key: str | None = None,
        not_before: float = 0.0,
    ) -> None:
        """Log a trial that has ended.

        Args:
            study_run: its study.
            trial: the trial.
            mode: how its run is created. Default: as the process that runs the trial does, if it
                has just ended.
            key: key of its run, if MLflow lacks a part of the trial.
            not_before: when its run may be created, in seconds since 1970.
        """
        now = now_ms()
        ended = to_ms(trial.datetime_complete) or now
        if mode is None:
            is_fresh = now - ended < CLAIM_SECONDS * 1000
            mode = study_run.claim if is_fresh else Mode.LOGGED
        attrs = {
            **(trial.user_attrs if self._tag_trial_user_attrs else {}),
            **(study_run.study.user_attrs if self._tag_study_user_attrs else {}),
        }
        tags = tags_of(trial, study_run.directions, attrs)
        state = tags[STATE_TAG]
        status = STATUS.get(state)
        if status is None:
            raise ValueError("it has not ended; end it with `study.tell(trial, value)`")
        self._rename(study_run)
        results = results_of(trial, study_run.names)
        failure = None
        if state == "FAIL":
            failure = failures.last_failure(trial.number, ended / 1000)
        trial_id = TrialId.of(trial)
        own_key = trial_id.run_key(study_run.key)
        with LOCK:
            run, held = self._runs.get(own_key), self._held.pop(own_key, ())
            if run is not None:
                run.set_tags(tags)
            else:
                start = self._start_of_trial(study_run, trial, trial_id, own_key, mode, tags)
                start["not_before"] = not_before
                if key is not None:
                    start |= {"key": key, "former_key": None}
                experiment = study_run.experiment
                if not held and failure is None:
                    log_ended_run(
                        self._client, experiment, results, status=status, end_time=ended, **start
                    )
                    study_run.logged.add(trial_id)
                    return
                run = self._runs[own_key] = RunWriter(self._client, experiment, **start)
        log_results(run, results, ended)
        is_kept = bool(held) and is_best(study_run.study, trial)
        for artifact in held:
            artifact.release(run, is_best=is_kept)
        if failure is not None and run.key not in self._failed:
            failures.log_failure(run, failure)
        run.finish(status, end_time=ended)
        with LOCK:
            self._runs.pop(own_key, None)
            self._failed.discard(run.key)
            study_run.logged.add(trial_id)

    def _rename(self, study_run: StudyRun) -> None:
        """Use the current names of the study's values, which may change after its first trial."""
        if self._metric_name is not None:
            return
        try:
            names = metric_names(None, study_run.study)
        except Exception:  # noqa: BLE001 - its storage may be gone
            return
        if names != study_run.names:
            _logger.warning(
                "The values of study %r are called %s from now on; runs of earlier trials keep the "
                "names %s. To avoid this, call `study.set_metric_names` before the first trial.",
                study_run.study.study_name,
                ", ".join(names),
                ", ".join(study_run.names),
            )
            study_run.names = names

    def _log_lacking(self, study_run: StudyRun, lacking: Lacking, not_before: float) -> None:
        # Several processes may find out at once that a trial has no run.
        is_anyones = study_run.is_shared and not lacking.has_run
        mode = Mode.SHARED if is_anyones else Mode.LOGGED
        with never_raising(f"trial {lacking.trial.number}"):
            self._log(study_run, lacking.trial, mode, key=lacking.key, not_before=not_before)

    def _log_uncaught(self, run: IAPRun, error: BaseException) -> None:
        failures.log_failure(run, failures.Failure.of(error))
        self._failed.add(run.key)

    def _reset(self) -> None:
        failures.listen()
        # By the user's object: the study's run, and another object for it, which may be kept.
        self._studies: WeakKeyDictionary[optuna.Study, tuple[StudyRun, optuna.Study]] = (
            WeakKeyDictionary()
        )
        self._study_runs: dict[str, StudyRun] = {}
        self._released: set[str] = set()  # keys of studies whose objects were replaced
        # By the trial's key.
        self._runs: dict[str, RunWriter] = {}
        self._held: dict[str, list[HeldArtifact]] = {}
        self._failed: set[str] = set()  # keys of runs whose traceback is logged
        self._said: set[str] = set()  # warnings

    def __getstate__(self) -> dict[str, Any]:
        left = ("_studies", "_study_runs", "_released", "_runs", "_held", "_failed", "_said")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
