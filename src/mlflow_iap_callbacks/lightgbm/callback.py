"""The callback that makes a run of each LightGBM training."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..delivery.lifecycle import sender_for
from ..delivery.run_writer import RunWriter, active_experiment, prepare
from ..iap.client import IAPMlflowClient
from .endings import engine_of
from .params import header_of, params_of, used_in
from .results import Results, Wanted
from .training import Training

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv
    from mlflow import MlflowClient
    from mlflow.entities import Run

_logger = logging.getLogger(__name__)


class IAPLightGBMCallback:
    """LightGBM callback that makes a run of each training: ``lgb.train(callbacks=[...])``.

    It works for ``lgb.train``, ``lgb.cv``, the scikit-learn and the Dask estimators. A metric is
    called ``SET-METRIC``, as MLflow's autolog calls it; ``lgb.cv`` has its standard deviation
    beside it as ``SET-METRIC-stdv``. The step is LightGBM's iteration. The best of each metric is
    one of its own, ``best-SET-METRIC``, at the step that had it.

    The run ends when the training returns: FINISHED, stopped early or not; FAILED when it raised,
    KILLED when Optuna pruned it, which may be known a little later, at the latest by ``flush``, at
    the next training or at exit. As a context manager, or by ``finish(booster)``, it also has the
    model, the importance of the features, and pictures.

    Args:
        run: a run to write to, which its owner finishes: ``IAPMLflowCallback.run(trial)``, a run
            id, or ``mlflow.active_run()``. Default: a run of its own for each training.
        tracking_uri: of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        experiment_name: of a run of its own. Default: MLflow's active one
            (``mlflow.set_experiment``, MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME), else
            *Default*.
        run_name: of a run of its own. Default: one of MLflow's.
        tags: of a run of its own.
        client: any MlflowClient, instead of an ``IAPMlflowClient`` for ``tracking_uri``.
        max_points: of each curve, at least 3, the best and the last among them. Default: all.
        fold_curves: whether each fold of ``lgb.cv`` has a curve, ``SET-METRIC-foldN``; the folds
            are evaluated once more for it, as LightGBM tells their mean only.
        log_datasets: whether the data sets are inputs of a run of its own: shape, features, and a
            digest of both with 10,000 of the labels.
        log_model: whether a finished booster is logged, in MLflow's lightgbm flavour.
        registered_model_name: in the model registry, which gets a version of it. Default: none.
        log_pictures: whether pictures are drawn of a finished booster.
        log_trees: how many of its trees are logged, as a table and, where Graphviz is installed,
            as pictures.

    Raises:
        IAPConfigurationError: as ``IAPMlflowClient``.
        ValueError: ``max_points`` is less than 3.

    Nothing is sent while the training waits: what is logged goes to a journal on disk, and from
    there to MLflow in the background. What goes wrong is logged as a warning once and never raised
    into the training. It may serve several trainings, in threads too, and travels to other
    processes by pickle. Of a Dask estimator's workers the first one logs.
    """

    def __init__(
        self,
        run: RunWriter | Run | str | None = None,
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
                f"max_points is {max_points}. Give at least 3: a first, the best and the last."
            )
        # Before all that may raise, and so hide the iteration from those behind it, as
        # early_stopping and LightGBMPruningCallback do. LightGBM reads the instance's.
        self.order = float("-inf")
        run = getattr(run, "writer", run)  # of a trial that is tracked in MLflow
        if isinstance(run, RunWriter):
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
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._trainings: dict[int, Training | None] = {}  # the last one of each thread
        self._kept: list[Training] = []  # those of a ``with`` that are not finished yet
        self._keeps = self._is_told = False

    def __call__(self, env: CallbackEnv) -> None:
        try:
            thread = threading.get_ident()
            if env.iteration == env.begin_iteration or thread not in self._trainings:
                self._trainings[thread] = self._begin(env)
            training = self._trainings[thread]
            if training is not None:
                training.log(env)
        except Exception as error:  # noqa: BLE001 - no training ends because of its log
            if not self._is_told:
                self._is_told = True
                _logger.warning("An iteration of LightGBM was not logged: %r", error)

    @property
    def run(self) -> RunWriter | None:
        """The run of this thread's last training, to log more to; None before the first."""
        training = self._trainings.get(threading.get_ident())
        return self._run if training is None else training.run

    def finish(self, booster: Any, *, X: Any = None, y: Any = None) -> None:
        """Log what only the finished booster knows, and end the run if it is the callback's own.

        That is the importance of its features, pictures, and the model; it takes about a second,
        with a word on the terminal meanwhile. What goes wrong is logged as a warning.

        Args:
            booster: a Booster, an estimator of ``lightgbm.sklearn`` or ``lightgbm.dask`` that is
                fitted, or a CVBooster. One that this callback has not seen in training, for it was
                trained elsewhere, gets a run of its own.
            X: shape (rows, features), what the booster predicts from: for the model's signature
                and its input example, which is its first five rows.
            y: shape (rows,), what is true of it: for a confusion matrix of classes, or residuals
                of numbers.
        """
        model = getattr(booster, "booster_", booster)
        estimator = booster if model is not booster else None
        known = [*self._kept, *filter(None, self._trainings.values())]
        training = next((each for each in known if each.model is model), None)
        if training is not None:
            self._finish(training, model, estimator=estimator, X=X, y=y)
            training.finish()
            if training in self._kept:
                self._kept.remove(training)
            return
        run = self._run or self._new_run()
        used = used_in(header_of(model))
        run.log_params({**used, **params_of(model.params, used)})
        results = Results(run, model, used.get("objective", ""))
        results.log(self._wanted, [], 0, estimator=estimator, X=X, y=y)
        if self._run is None:
            run.finish()

    def close(self, status: str | None = None) -> None:
        """End the runs that are the callback's own and still open, and log nothing more.

        Args:
            status: FINISHED, FAILED or KILLED. Default: as the training turned out.
        """
        for training in {*self._kept, *filter(None, self._trainings.values())}:
            training.end(status)
            if training.keeps:
                training.finish()
        self._kept.clear()
        self._trainings.clear()

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until all that was logged is delivered.

        Args:
            timeout: seconds. Default: a minute, which outlasts the restart of an App Engine
                instance; None for as long as it takes.

        Returns:
            Whether all was delivered, or refused by MLflow for good. What was not stays queued.
        """
        training = self._trainings.get(threading.get_ident())
        if training is not None:  # a call from here, and so it is over
            training.end()
        return sender_for(self._client).flush(timeout)

    def __enter__(self) -> IAPLightGBMCallback:
        self._keeps = True
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._keeps = False
        kept = [*self._kept]
        self._kept.clear()
        for training in kept:
            training.end()
            # What comes behind a training does not take its model.
            if training.status == "FINISHED":
                self._finish(training, training.model)
            training.finish(_status_of(error) if training is kept[-1] else None)
        self.flush()

    def _finish(self, training: Training, model: Any, **given: Any) -> None:
        training.end("FINISHED")
        results = Results(training.run, model, training.used.get("objective", ""))
        best = training.ending.best_iteration
        results.log(self._wanted, training.curves.samples(), best, **given)

    def _begin(self, env: CallbackEnv) -> Training | None:
        before = self._trainings.get(threading.get_ident())
        if before is not None:
            before.end()
        if not _is_first_worker(env.params):
            return None
        training = Training(
            self._run or self._new_run(),
            env,
            engine_of(sys._getframe(1)),
            is_own=self._run is None,
            keeps=self._keeps,
            fold_curves=self._fold_curves,
            max_points=self._max_points,
            log_datasets=self._log_datasets and self._run is None,
        )
        if self._keeps:
            self._kept.append(training)
        return training

    def _new_run(self) -> RunWriter:
        name = self._experiment_name
        experiment = active_experiment() if name is None else f"name:{name}"
        return RunWriter(self._client, experiment, run_name=self._run_name, tags=self._tags)

    def __getstate__(self) -> dict[str, Any]:
        left = ("_trainings", "_kept", "_keeps", "_is_told")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_anew()


def _status_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    optuna = sys.modules.get("optuna")
    is_pruned = optuna is not None and isinstance(error, optuna.TrialPruned)
    return "KILLED" if is_pruned else "FAILED"


def _is_first_worker(params: Mapping[str, Any]) -> bool:
    """Whether this is the one process of a distributed training that logs."""
    machines = str(params.get("machines") or "").split(",")
    port = str(params.get("local_listen_port"))
    if len(machines) < 2:
        return True
    first, _, first_port = machines[0].rpartition(":")
    if port != first_port:
        return False
    if sum(machine.endswith(f":{port}") for machine in machines) == 1:
        return True
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        address = distributed.get_worker().address
        return bool(address.rpartition("://")[2].rpartition(":")[0] == first)
    return first in {socket.gethostname(), *socket.gethostbyname_ex(socket.gethostname())[2]}
