"""The LightGBM callback, which passes each of its calls on to a ``Training``."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..delivery.flush_result import IAPFlushResult
from ..delivery.lifecycle import flush, sender_for
from ..delivery.run_writer import IAPRun, RunWriter, active_experiment, prepare
from ..delivery.summary import Summary
from ..iap.arguments import Callback, checked, wrong_library
from ..iap.client import IAPMlflowClient
from .endings import engine_of, status_of
from .finished_model import FinishedModel, Wanted
from .params import header_of, params_of, used_in
from .summary_table import summary_of
from .training import Training
from .workers import is_first_worker

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv
    from mlflow import MlflowClient
    from mlflow.entities import Run

_logger = logging.getLogger("mlflow_iap_callbacks")


class IAPLightGBMCallback(Callback):
    """Log each LightGBM training run as an MLflow run.

    It works with ``lgb.train``, ``lgb.cv``, and the scikit-learn and Dask estimators. Metrics have
    the same names as with MLflow's autolog, ``SET-METRIC``; ``lgb.cv`` adds the standard deviation
    as ``SET-METRIC-stdv``. The step is LightGBM's iteration. The best value of each metric is
    logged as ``best-SET-METRIC``, at the step with that value.

    The run ends when training ends: as FINISHED (even after early stopping), as FAILED if there was
    an exception, or as KILLED if Optuna pruned the trial. FAILED and KILLED may be noticed later:
    by ``flush``, at the next training run, or when the process exits. To log the model, the feature
    importance and plots too, use the callback as a context manager or call ``finish(booster)``.

    Training never waits for the server: records are written to a journal on disk and sent in the
    background. Errors are logged as warnings and do not stop training. A callback can be used for
    several training runs, even in parallel threads, and can be pickled. In
    distributed training, with Dask or without, only the first worker logs.

    Args:
        run: run to log to, which is left open: ``IAPMLflowCallback.run(trial)``, a run id, or
            ``mlflow.active_run()``. Default: a new run each time.
        tracking_uri: URI of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        experiment_name: experiment of new runs. Default: MLflow's active one
            (``mlflow.set_experiment``, MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME), else
            *Default*.
        run_name: name of new runs. Default: a name that MLflow makes up.
        tags: tags of new runs.
        client: an MlflowClient to use instead of ``IAPMlflowClient(tracking_uri)``.
        max_points: maximum number of points per curve, at least 3; the best and the last point are
            always included. Half of the points are logged during training, the others at its end.
            Default: no limit.
        fold_curves: whether to log a curve for each fold of ``lgb.cv``, as ``SET-METRIC-foldN``.
            Off by default, because each fold must then be evaluated a second time.
        log_datasets: whether to log the data sets as inputs of new runs, with shape, features and a
            digest that includes 10,000 labels.
        log_model: whether to log a finished booster in MLflow's lightgbm flavor.
        registered_model_name: registered model to which the booster is added as a new version.
            Default: none.
        log_pictures: whether to draw plots of a finished booster.
        log_trees: number of trees of a finished booster to log, as a table and, if Graphviz is
            installed, as pictures.

    Raises:
        IAPConfigurationError: the settings cannot work; see ``IAPMlflowClient``.
        ValueError: ``max_points`` is less than 3.

    Examples:
        ```python
        with IAPLightGBMCallback() as callback:
            booster = lgb.train(params, train_set, valid_sets=[valid_set], callbacks=[callback])
            callback.finish(booster, X=X_valid, y=y_valid)
        ```
    """

    @checked
    def __init__(
        self,
        run: IAPRun | Run | str | None = None,
        *,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        client: MlflowClient | None = None,
        max_points: int | None = None,
        fold_curves: bool = False,
        log_datasets: bool = True,
        log_model: bool = True,
        registered_model_name: str | None = None,
        log_pictures: bool = True,
        log_trees: int = 0,
    ) -> None:
        if max_points is not None and max_points < 3:
            raise ValueError(
                f"max_points is {max_points}. Give at least 3: the first, the best and the last."
            )
        # Before early_stopping and LightGBMPruningCallback, whose exceptions hide the iteration
        # from later callbacks. On the instance, because LightGBM overwrites a class attribute.
        self.order = float("-inf")
        run = getattr(run, "writer", run)  # the active run, in an objective with track_in_mlflow
        if isinstance(run, IAPRun):
            self._client = run.client
        else:
            self._client = client or IAPMlflowClient(tracking_uri)
            prepare(self._client)
            if run is not None:
                run_id = run if isinstance(run, str) else run.info.run_id
                run = RunWriter.existing(self._client, run_id)
        self._run = run
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._max_points, self._fold_curves = max_points, fold_curves
        self._log_datasets = log_datasets
        self._wanted = Wanted(log_model, registered_model_name, log_pictures, log_trees)
        self._reset()

    def _reset(self) -> None:
        self._trainings: dict[int, Training | None] = {}  # the last one of each thread
        self._kept: list[Training] = []  # unfinished ones of a ``with`` block
        self._is_in_with = self._has_warned = False

    def __call__(self, env: CallbackEnv, *others: object) -> None:
        if others:
            raise wrong_library(self, "Optuna", "IAPMLflowCallback")
        try:
            thread = threading.get_ident()
            if env.iteration == env.begin_iteration or thread not in self._trainings:
                self._trainings[thread] = self._start(env)
            training = self._trainings[thread]
            if training is not None:
                training.log(env)
        except Exception as error:  # noqa: BLE001 - logging never stops training
            if not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    "Could not log an iteration of LightGBM (%r). Training continues.", error
                )

    @property
    def run(self) -> IAPRun | None:
        """A handle for the last run of this thread, to log more to it; None if there is none."""
        training = self._trainings.get(threading.get_ident())
        return self._run if training is None else training.run

    @checked
    def finish(self, booster: Any, *, X: Any = None, y: Any = None) -> None:
        """Log a finished booster: feature importance, plots and the model.

        The run then ends, unless it was passed to the callback as ``run``. This takes about a
        second; a terminal shows what is being logged. Errors are logged as warnings.

        Args:
            booster: a Booster, a CVBooster, or a fitted estimator of ``lightgbm.sklearn`` or
                ``lightgbm.dask``. It gets a new run if this callback did not log its training.
            X: data for the model's signature and input example (its first five rows), of shape
                (rows, features).
            y: true values for ``X``, of shape (rows,), for a confusion matrix or residuals.
        """
        model = getattr(booster, "booster_", booster)
        estimator = booster if model is not booster else None
        known = [*self._kept, *filter(None, self._trainings.values())]
        training = next((each for each in known if each.model is model), None)
        if training is not None:
            self._log_finished(training, model, estimator=estimator, X=X, y=y)
            training.finish()
            if training in self._kept:
                self._kept.remove(training)
            return
        run = self._run or self._new_run()
        used = used_in(header_of(model))
        run.log_params({**used, **params_of(model.params, used)})
        finished = FinishedModel(run, model, used.get("objective", ""))
        finished.log(self._wanted, [], 0, estimator=estimator, X=X, y=y)
        if self._run is None:
            run.finish()

    @checked
    def close(self, status: str | None = None) -> None:
        """End the open runs that this callback created, without logging the model.

        Args:
            status: FINISHED, FAILED or KILLED. Default: how training ended.
        """
        for training in {*self._kept, *filter(None, self._trainings.values())}:
            training.end(status)
            if training.keeps_model:
                training.finish()
        self._kept.clear()
        self._trainings.clear()

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
        training = self._trainings.get(threading.get_ident())
        if training is not None:  # this thread ran the training, so it has ended
            training.end()
        result = flush(self._client, timeout)
        for training in filter(None, self._trainings.values()):
            training.run.show_link()
        return result

    def summary(self) -> Summary:
        """Summarize the last training of each thread, and the delivery, in a table.

        It is for ``print`` and for notebooks.
        """
        return summary_of([*filter(None, self._trainings.values())], sender_for(self._client))

    def __enter__(self) -> IAPLightGBMCallback:
        self._is_in_with = True
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._is_in_with = False
        kept = [*self._kept]
        self._kept.clear()
        for training in kept:
            training.end()
            # After an exception outside of training, the run fails but keeps its model.
            if training.status == "FINISHED":
                self._log_finished(training, training.model)
            is_last = training is kept[-1]
            training.finish(status_of(error) if error is not None and is_last else None)
        self.flush()

    def _log_finished(self, training: Training, model: Any, **given: Any) -> None:
        training.end("FINISHED")
        finished = FinishedModel(training.run, model, training.used.get("objective", ""))
        best_iteration = training.ending.best_iteration
        finished.log(self._wanted, training.curves.samples(), best_iteration, **given)

    def _start(self, env: CallbackEnv) -> Training | None:
        before = self._trainings.get(threading.get_ident())
        if before is not None:
            before.end()
        if not is_first_worker(env.params):
            return None
        training = Training(
            self._run or self._new_run(),
            env,
            engine_of(sys._getframe(1)),
            is_own=self._run is None,
            keeps_model=self._is_in_with,
            fold_curves=self._fold_curves,
            max_points=self._max_points,
            log_datasets=self._log_datasets and self._run is None,
        )
        if self._is_in_with:
            self._kept.append(training)
        return training

    def _new_run(self) -> RunWriter:
        name = self._experiment_name
        experiment = active_experiment() if name is None else f"name:{name}"
        return RunWriter(
            self._client, experiment, run_name=self._run_name, tags=self._tags, has_link=True
        )

    def __getstate__(self) -> dict[str, Any]:
        left = ("_trainings", "_kept", "_is_in_with", "_has_warned")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
