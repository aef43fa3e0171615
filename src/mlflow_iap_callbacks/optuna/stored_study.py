"""A study in a storage, compared with MLflow without the program that ran it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Run

from ..tags import RUN_KEY_TAG, STUDY_TAG
from .callback import IAPMLflowCallback
from .study_key import study_key
from .sync import RETRY, Comparison, compare, has_begun

if TYPE_CHECKING:
    import optuna


class StoredStudy:
    """A study, and the MLflow experiment that has its runs.

    The experiment is the one with the study's run, else the one with runs of its trials, else the
    one that ``IAPMLflowCallback()`` logs to.

    Args:
        study: the study.
        client: a client of the server.

    Raises:
        MlflowException: MLflow cannot be read.
    """

    def __init__(self, study: optuna.Study, client: MlflowClient) -> None:
        self.study = study
        self._client = client
        trials = study.get_trials(deepcopy=False)
        self.states = Counter(trial.state.name for trial in trials)
        self._ended = [trial for trial in trials if trial.state.is_finished()]
        self._key = study_key(study) if has_begun(trials) else None
        own, found = ([], []) if self._key is None else self._runs(self._key)
        self._options: dict[str, Any] = {}
        self._experiment = f"name:{study.study_name}"
        if found:
            experiment_id = found[0].info.experiment_id
            self._experiment = f"id:{experiment_id}"
            self._options = {
                "create_experiment": False,
                "mlflow_kwargs": {"experiment_id": experiment_id},
                "study_run": bool(own),
            }

    def compare(self) -> Comparison:
        """Find the ended trials that MLflow lacks.

        Raises:
            MlflowException: MLflow cannot be read.
        """
        if self._key is None:
            return Comparison([], set())
        return compare(self._client, self._experiment, self._key, self._ended)

    def log(self) -> None:
        """Log what MLflow lacks, in the background.

        Raises:
            MlflowException: MLflow cannot be read.
        """
        IAPMLflowCallback(client=self._client, **self._options).sync(self.study)

    def _runs(self, key: str) -> tuple[Sequence[Run], Sequence[Run]]:
        """The study's run, if any; then that run or, without it, a run of one of its trials."""
        experiments: list[str] = []
        token = None
        while True:
            page = RETRY(partial(self._client.search_experiments, page_token=token))
            experiments += [experiment.experiment_id for experiment in page]
            token = page.token
            if not token:
                break
        own = self._search(experiments, RUN_KEY_TAG, key)
        return own, own or self._search(experiments, STUDY_TAG, key)

    def _search(self, experiments: list[str], tag: str, key: str) -> Sequence[Run]:
        query = f"tags.`{tag}` = '{key}'"
        return RETRY(partial(self._client.search_runs, experiments, query, max_results=1))
