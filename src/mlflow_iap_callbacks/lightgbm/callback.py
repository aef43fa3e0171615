"""The LightGBM callback, which passes each of its calls on to a ``Training``."""

from __future__ import annotations

import logging
import sys
import threading
import uuid
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..delivery.flush_result import IAPFlushResult
from ..delivery.lifecycle import flush, sender_for
from ..delivery.never_raising import never_raising
from ..delivery.run import IAPRun, experiment_of, prepare
from ..delivery.run_writer import RunWriter
from ..delivery.summary import Summary
from ..iap.arguments import Callback, checked, wrong_library
from ..iap.client import IAPMlflowClient
from .endings import engine_of, is_training, status_of
from .estimators import fitted, is_of_lightgbm
from .finished_model import FinishedModel, Wanted
from .params import header_of, params_of, used_in
from .prefixed_run import PrefixedRun, checked_prefix
from .summary_table import summary_of
from .training import Training
from .workers import is_first_worker

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Attribute of a model, which is pickled with it: the callback's id, the experiment and run key.
_RUN = "_mlflow_iap_run"

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
        prefix: folder for everything that is logged, such as ``fold1``, for several training runs
            in one run: the metrics are ``fold1/SET-METRIC``, and params, artifacts, models and data
            sets likewise. Default: none.
        max_points: maximum number of points per curve, at least 3; the best and the last point are
            always included. Half of the points are logged during training, the others at its end.
            Default: no limit.
        fold_curves: whether to log a curve for each fold of ``lgb.cv``, as ``SET-METRIC-foldN``.
            Off by default, because each fold must then be evaluated a second time.
        log_datasets: whether to log the data sets as inputs of new runs, with shape, features and a
            digest that includes 10,000 of the labels.
        log_model: whether to log a finished booster in MLflow's lightgbm flavor.
        registered_model_name: registered model to which the booster is added as a new version.
            Default: none.
        log_pictures: whether to draw plots of a finished booster.
        log_trees: number of trees of a finished booster to log, as a table and, if Graphviz is
            installed, as pictures.

    Raises:
        IAPConfigurationError: the settings cannot work; see ``IAPMlflowClient``.
        ValueError: ``max_points`` is less than 3, or ``prefix`` is not a folder name.

    Examples:
        ```python
        with IAPLightGBMCallback() as callback:
            booster = lgb.train(params, train_set, valid_sets=[valid_set], callbacks=[callback])
            callback.finish(booster, X=X_valid, y=y_valid)
        ```
    """

    _id: str | None = None  # shared with copies made by pickle; None if there are none

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
        prefix: str | None = None,
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
        self._prefix = None if prefix is None else checked_prefix(prefix)
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
        self._trainings: dict[int, Training] = {}  # the last one of each thread
        # By model; None if another worker logs it, or if its run could not be started.
        self._by_model: weakref.WeakKeyDictionary[Any, Training | None]
        self._by_model = weakref.WeakKeyDictionary()
        self._finished: weakref.WeakSet[Any] = weakref.WeakSet()  # models that are logged
        self._kept: list[Training] = []  # unfinished ones of a ``with`` block
        self._is_in_with = self._has_warned = False

    def __call__(self, env: CallbackEnv, *others: object) -> None:
        if others:
            raise wrong_library(self, "Optuna", "IAPMLflowCallback")
        try:
            training = self._trainings.get(threading.get_ident())
            if training is not None and training.log_usual(env):
                return
            training = self._training_of(env)
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
        run = self._run if training is None else training.run
        return run.whole if isinstance(run, PrefixedRun) else run

    @checked
    def finish(self, booster: Any, *, X: Any = None, y: Any = None) -> None:
        """Log a finished booster: feature importance, plots and the model.

        The run then ends, unless it was passed to the callback as ``run``. This takes about a
        second; a terminal shows what is being logged. Errors are logged as warnings. Each model is
        logged once, no matter how often this is called.

        Args:
            booster: a Booster, a CVBooster, a fitted estimator of ``lightgbm.sklearn`` or
                ``lightgbm.dask``, or a fitted estimator of scikit-learn that has one LightGBM
                model: a Pipeline ending with it, or a search with its best estimator. An estimator
                is logged as a whole. A model that this callback has not seen in training gets a new
                run.
            X: data in any form that LightGBM accepts, of shape (rows, features), for the model's
                input example (its first five rows), its signature and predictions.
            y: true values for ``X``, of shape (rows,), for a confusion matrix or residuals.

        Raises:
            TypeError: ``booster`` is none of these. No run was created.
        """
        model, estimator = fitted(booster)
        if X is None and y is not None:
            _logger.warning("finish was called with y and without X, so y is not used. Pass both.")
        if model in self._finished:
            if X is not None:
                _logger.warning(
                    "finish was called for a model that is already logged, so X and y are not "
                    "used. Call it once for each model, inside the with block if there is one."
                )
            return
        training = self._by_model.get(model)
        if training is not None:
            self._log_finished(training, model, estimator, X=X, y=y)
            training.finish()
            if training in self._kept:
                self._kept.remove(training)
            return
        self._finished.add(model)
        copied = self._run_of_a_copy(model)
        run = self._part_of(self._run or copied or self._new_run())
        used: dict[str, str] = {}
        with never_raising("the params of LightGBM"):
            used = used_in(header_of(model))
            if copied is None:
                run.log_params({**used, **params_of(model.params, used)})
        finished = FinishedModel(run, model, used.get("objective", ""), estimator)
        finished.log(self._wanted, [], 0, X=X, y=y)
        if self._run is None and copied is None:
            run.finish()

    @checked
    def close(self, status: str | None = None) -> None:
        """End the open runs that this callback created, without logging the model.

        Args:
            status: FINISHED, FAILED or KILLED. Default: how training ended.
        """
        for training in {*self._kept, *self._trainings.values()}:
            training.end(status)
            if training.keeps_model:
                training.finish()
        self._kept.clear()
        self._trainings.clear()

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
        training = self._trainings.get(threading.get_ident())
        # This thread ran the training, so it has ended, unless one of its callbacks calls this.
        if training is not None and not is_training(training.model, sys._getframe()):
            training.end()
        result = flush(self._client, timeout)
        for training in filter(None, self._trainings.values()):
            training.run.show_link()
        return result

    def summary(self) -> Summary:
        """Summarize the last training run of each thread, and the delivery, in a table.

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
                self._log_finished(training, training.model, training.estimator)
            is_last = training is kept[-1]
            training.finish(status_of(error) if error is not None and is_last else None)
        self.flush()

    def _log_finished(self, training: Training, model: Any, estimator: Any, **given: Any) -> None:
        self._finished.add(model)
        training.end("FINISHED")
        objective = training.used.get("objective", "")
        finished = FinishedModel(training.run, model, objective, estimator)
        # What another estimator passes on to LightGBM is not what it predicts.
        is_direct = estimator is None or is_of_lightgbm(estimator)
        finished.log(
            self._wanted,
            training.curves.samples(),
            training.ending.best_iteration,
            trained_on=training.trained_on if is_direct else None,
            **given,
        )

    def _training_of(self, env: CallbackEnv) -> Training | None:
        """The training run of an iteration. The first iteration starts it."""
        thread, model = threading.get_ident(), env.model
        is_first, before = env.iteration == env.begin_iteration, self._trainings.get(thread)
        is_new = is_first or model not in self._by_model
        is_other = before is not None and (is_new or before is not self._by_model[model])
        # The other one has ended, unless this one runs inside one of its callbacks.
        if before is not None and is_other and not is_training(before.model, sys._getframe()):
            before.end()
        if is_new:
            self._by_model[model] = None  # even if starting it fails, there is no second attempt
            self._by_model[model] = self._start(env)
        training = self._by_model[model]
        if training is not None:
            self._trainings[thread] = training
        return training

    def _start(self, env: CallbackEnv) -> Training | None:
        if not is_first_worker(env.params):
            return None
        run = self._run or self._new_run()
        if self._id is not None:
            vars(env.model)[_RUN] = (self._id, *run.__getstate__()[1:])
        training = Training(
            self._part_of(run),
            env,
            engine_of(sys._getframe()),
            is_own=self._run is None,
            keeps_model=self._is_in_with,
            fold_curves=self._fold_curves,
            max_points=self._max_points,
            # The data sets of a given run may have the same names, unless there is a prefix.
            log_datasets=self._log_datasets and (self._run is None or self._prefix is not None),
        )
        if self._is_in_with:
            self._kept.append(training)
        return training

    def _part_of(self, run: IAPRun) -> IAPRun | PrefixedRun:
        return run if self._prefix is None else PrefixedRun(run, self._prefix)

    def _new_run(self) -> RunWriter:
        experiment = experiment_of(self._experiment_name)
        return RunWriter(
            self._client, experiment, run_name=self._run_name, tags=self._tags, has_link=True
        )

    def _run_of_a_copy(self, model: Any) -> RunWriter | None:
        """The run of a model trained with a copy of this callback, as in a worker of Dask."""
        owner, *place = vars(model).get(_RUN, (None,))
        if owner is None or owner != self._id:
            return None
        run = RunWriter.__new__(RunWriter)
        run.__setstate__((self._client, *place))
        return run

    def __getstate__(self) -> dict[str, Any]:
        self._id = self._id or uuid.uuid4().hex
        left = ("_trainings", "_by_model", "_finished", "_kept", "_is_in_with", "_has_warned")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_prefix": None} | state)  # earlier versions had no prefix
        self._reset()
