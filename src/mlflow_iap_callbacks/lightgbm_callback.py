"""A LightGBM iteration, translated into MLflow metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .client import IAPMlflowClient
from .process import sender_for
from .runs import RunWriter, prepare

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv
    from mlflow import MlflowClient


class IAPLightGBMCallback:
    """LightGBM callback that logs each iteration's metrics: ``lgb.train(callbacks=[...])``.

    A metric is called ``SET-METRIC``, as MLflow's autolog calls it; ``lgb.cv`` has its standard
    deviation beside it as ``SET-METRIC-stdv``. The step is LightGBM's iteration.

    Args:
        run: a run to write to, which its owner finishes: ``IAPMLflowCallback.run(trial)``.
            Default: a run of its own for each training, finished at its last iteration, by
            ``close`` (an early stop has no later hook in LightGBM), or at exit.
        tracking_uri: of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        experiment_name: experiment of a run of its own. Default: ``lightgbm``.
        run_name: of a run of its own. Default: one of MLflow's.
        tags: of a run of its own.
        client: any MlflowClient, instead of an ``IAPMlflowClient`` for ``tracking_uri``.

    Raises:
        IAPConfigurationError: as ``IAPMlflowClient``, where the run is its own.

    Nothing is sent while the training waits: what is logged goes to a journal on disk, and from
    there to MLflow in the background. What goes wrong is logged as a warning once and never raised
    into the training.
    """

    def __init__(
        self,
        run: RunWriter | None = None,
        *,
        tracking_uri: str | None = None,
        experiment_name: str = "lightgbm",
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        client: MlflowClient | None = None,
    ) -> None:
        # Before early_stopping (30) and LightGBMPruningCallback (a small negative number), which
        # raise and so hide the iteration from those behind them. LightGBM reads the instance's.
        self.order = -100
        self._run = run
        self._client = None
        if run is None:
            self._client = client or IAPMlflowClient(tracking_uri)
            prepare(self._client)
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tags = dict(tags or {})

    def __call__(self, env: CallbackEnv) -> None:
        if env.iteration == env.begin_iteration:
            self.close()
        run = self._run or self._start(env.params)
        values: dict[str, float] = {}
        for item in env.evaluation_result_list or ():
            # (set, metric, mean, maximize[, stdv]); up to LightGBM 4.5 cv has ("cv_agg", "set
            # metric", ...). 4.7's items have an idea of their length of their own, and a slow one.
            data, metric = item[0], item[1]
            if data == "cv_agg":
                data, _, metric = metric.partition(" ")
            values[f"{data}-{metric}"] = item[2]
            length = tuple.__len__(item) if isinstance(item, tuple) else len(item)
            if length > 4 and item[4] is not None:
                values[f"{data}-{metric}-stdv"] = item[4]
        run.log_metrics(values, step=env.iteration)
        if env.iteration == env.end_iteration - 1:
            self.close()

    def close(self, status: str = "FINISHED") -> None:
        """Finish the run if it is the callback's own; nothing is left to do otherwise.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        if self._client is not None and self._run is not None:
            self._run.finish(status)
            self._run = None

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until all that was logged is delivered.

        Args:
            timeout: seconds. Default: a minute, which outlasts the restart of an App Engine
                instance; None for as long as it takes.

        Returns:
            Whether all was delivered, or refused by MLflow for good. What was not stays queued.
        """
        if self._client is not None:
            return sender_for(self._client).flush(timeout)
        return self._run is None or self._run.flush(timeout)

    def __enter__(self) -> IAPLightGBMCallback:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED")
        if self._client is not None:
            self.flush()

    def _start(self, params: Mapping[str, Any]) -> RunWriter:
        assert self._client is not None  # noqa: S101
        self._run = RunWriter(
            self._client, self._experiment_name, run_name=self._run_name, tags=self._tags
        )
        self._run.finish_at_exit("FINISHED")
        self._run.log_params(params)
        return self._run
