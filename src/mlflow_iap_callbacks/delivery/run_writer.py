"""A run handle whose run is ended by a callback or MLflow's API, not by a ``with`` block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient

from ..limits import MAX_EXPERIMENT_TAG_LENGTH
from .plain_values import as_texts, end_status
from .run import EXISTING, IAPRun
from .run_creation import Mode
from .run_records import param_records

if TYPE_CHECKING:
    from typing_extensions import Self


class RunWriter(IAPRun):
    """A run handle whose run is ended by a callback or MLflow's API, not by a ``with`` block.

    Args:
        client: delivers the run.
        experiment: name of the experiment, which is created if it does not exist; or ``id:ID``.
            Write ``name:NAME`` if the name itself begins with ``id:`` or ``name:``.
        run_name: name shown in MLflow. Default: one that MLflow makes up.
        start_time: milliseconds since 1970, UTC. Default: now.
        tags: tags of the new run.
        key: run key, stored as a tag. Default: a random one.
        mode: who else may have created a run with this key. Default: a process that has ended; its
            run is continued.
        parent: parent run, or its id.
        not_before: time before which the run is not looked up or created, in seconds since 1970.
        former_key: key that an earlier version may have given to the run, if it began at
            ``start_time``.
        has_link: whether to show the URL of the run.
    """

    _is_ended_by_with = False

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        *,
        run_name: str | None = None,
        start_time: int | None = None,
        tags: Mapping[str, Any] | None = None,
        key: str | None = None,
        mode: Mode = Mode.RESUMED,
        parent: IAPRun | str | None = None,
        not_before: float = 0.0,
        former_key: str | None = None,
        has_link: bool = False,
    ) -> None:
        if not experiment.startswith(("id:", "name:")):
            experiment = f"name:{experiment}"
        self._begin(
            client,
            experiment,
            run_name=run_name,
            start_time=start_time,
            tags=tags,
            key=key,
            mode=mode if key else Mode.NEW,
            parent=parent,
            not_before=not_before,
            former_key=former_key,
            has_link=has_link,
        )

    @classmethod
    def existing(cls, client: MlflowClient, run_id: str) -> Self:
        """Return a handle for an existing run, which others may also log to and end.

        Args:
            client: delivers what is logged.
            run_id: MLflow's id of the run.
        """
        run = cls.__new__(cls)
        run.__setstate__((client, EXISTING, run_id))
        return run

    def log_suggestions(self, params: Mapping[str, Any]) -> None:
        """Log the params that were suggested for a trial.

        If the run already has a param with another value, such as the one that was really used, the
        suggestion is logged as ``suggested.NAME``.
        """
        self._append_all(param_records(params, "suggestions"))

    def set_experiment_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run's experiment. Values are cut to 5,000 characters."""
        self._append("experiment_tags", as_texts(tags, MAX_EXPERIMENT_TAG_LENGTH))

    def reopen(self) -> None:
        """Set the run to RUNNING again, if another process has ended it."""
        self._append("reopen", {})

    def finish_at_exit(self, status: str | None) -> None:
        """Set the status that the run gets if it is still open when the process exits.

        Args:
            status: FINISHED, FAILED or KILLED. None: FAILED, with a tag that says why. A run
                also ends like that if its process is killed.
        """
        self._queued().at_exit = None if status is None else end_status(status)

    @property
    def known_experiment_id(self) -> str | None:
        """MLflow's id of the run's experiment; None if it is not known yet."""
        return None if self._run is None else self._run.experiment_id
