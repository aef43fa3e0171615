"""An Optuna trial, translated into an MLflow run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .client import IAPMlflowClient
from .process import sender_for
from .runs import RunWriter, now_ms

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

# The convention of mlflow.optuna's storage.
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


class IAPMLflowCallback:
    """Optuna callback that makes a run of each trial: ``study.optimize(..., callbacks=[...])``.

    The run carries the trial's params with their distributions, its values, its state and user
    attributes, its own start and end, and ends FINISHED (complete), KILLED (pruned) or FAILED.

    Args:
        tracking_uri: of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        experiment_name: experiment of the runs. Default: the study's name.
        tags: given to each run.
        client: any MlflowClient, instead of an ``IAPMlflowClient`` for ``tracking_uri``.

    Raises:
        IAPConfigurationError: as ``IAPMlflowClient``.

    Nothing is sent while the study waits: what is logged goes to a journal on disk, and from there
    to MLflow in the background. What goes wrong is logged as a warning once and never raised into
    the study.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        client: MlflowClient | None = None,
    ) -> None:
        self._client = client or IAPMlflowClient(tracking_uri)
        sender_for(self._client)  # from here on SIGTERM is taken care of, in the main thread
        self._experiment_name = experiment_name
        self._tags = dict(tags or {})
        self._reset()

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        run = self.run(trial, study=study)
        names = study.metric_names or _value_names(trial.values or ())
        run.log_params(trial.params)
        run.log_metrics(
            dict(zip(names, trial.values or (), strict=False)),
            timestamp=_ms(trial.datetime_complete),
        )
        run.set_tags(_tags_of(study, trial))
        run.finish(_STATUS.get(trial.state.name, "FAILED"), end_time=_ms(trial.datetime_complete))
        with self._lock:
            self._runs.pop((study.study_name, trial.number), None)

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
        key = (study.study_name, trial.number)
        with self._lock:
            if key not in self._runs:
                self._runs[key] = RunWriter(
                    self._client,
                    self._experiment_name or study.study_name,
                    run_name=str(trial.number),
                    start_time=_ms(trial.datetime_start),
                    tags=self._tags,
                )
            return self._runs[key]

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until all that was logged is delivered.

        Args:
            timeout: seconds. Default: a minute, which outlasts the restart of an App Engine
                instance; None for as long as it takes.

        Returns:
            Whether all was delivered, or refused by MLflow for good. What was not stays queued.
        """
        return sender_for(self._client).flush(timeout)

    def __enter__(self) -> IAPMLflowCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, int], RunWriter] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_client", "_experiment_name", "_tags")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _value_names(values: Sequence[float]) -> list[str]:
    return ["value"] if len(values) == 1 else [f"value_{i}" for i in range(len(values))]


def _tags_of(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    directions = [direction.name for direction in study.directions]
    return {
        "number": trial.number,
        "state": trial.state.name,
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
        "direction": directions[0] if len(directions) == 1 else directions,
        **{f"{name}_distribution": value for name, value in trial.distributions.items()},
        **trial.user_attrs,
    }


def _ms(moment: datetime | None) -> int:
    return now_ms() if moment is None else int(moment.timestamp() * 1000)
