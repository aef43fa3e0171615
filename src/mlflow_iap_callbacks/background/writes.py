"""Appends what is logged with MLflow's API to the outbox, and waits until it is delivered."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from ..delivery.closing import Deadline, deliver_own
from ..delivery.lifecycle import LOCK, flush, sender_for
from ..delivery.models import find_model
from ..delivery.provisional_models import has_provisional_id, with_ids
from ..delivery.run_writer import RunWriter
from ..delivery.sender import Sender
from ..errors import IAPError
from ..plurals import counted

_logger = logging.getLogger("mlflow_iap_callbacks")

# Seconds that a read waits for what was logged before it; the same as for ``IAPRun.flush``.
_SECONDS_TO_WAIT = 60.0
_MOST_RUNS = 1000
_MOST_MODELS = 1000


class BackgroundRun(RunWriter):
    """The run handle of a run that MLflow's API creates, writes to and ends."""

    def append(self, kind: str, content: Any) -> None:
        """Append a record."""
        self._append(kind, content)

    def append_file(self, kind: str, path: Path, content: dict[str, Any]) -> None:
        """Append a record with a copy of a file or folder.

        Raises:
            OSError: the file or folder cannot be copied.
        """
        self._append(kind, {"path": self._keep(path), "is_copied": True, **content})

    def forget_refusal(self) -> None:
        """Send new records of a restored run, although MLflow rejected it while it was deleted."""
        self._queued().refused = None


class Writes:
    """What this process logs to one server with MLflow's API.

    Args:
        tracking_uri: tracking URI of the server.
        new_client: returns the client that delivers.
        is_strict: whether ``flush`` raises an error for what MLflow rejected.

    Attributes:
        models: models that this process created, by id.
    """

    def __init__(
        self, tracking_uri: str, new_client: Callable[[], MlflowClient], *, is_strict: bool
    ) -> None:
        self.tracking_uri = tracking_uri
        self._new_client = new_client
        self._is_strict = is_strict
        self._made_client: MlflowClient | None = None
        self._runs: OrderedDict[str, BackgroundRun] = OrderedDict()  # by id, oldest first
        self._reported: dict[Sender, int] = {}  # number of refusals already raised
        self.models: OrderedDict[str, LoggedModel] = OrderedDict()
        self._model_ids: dict[str, str] = {}  # MLflow's, by provisional id

    def run(self, run_id: str) -> BackgroundRun:
        """Return the handle of a run."""
        run = self._runs.get(run_id)
        if run is None:
            with LOCK:
                run = self._runs[run_id] = BackgroundRun.existing(self._client(), run_id)
                if len(self._runs) > _MOST_RUNS:
                    self._runs.popitem(last=False)
        return run

    def add_model(self, model: LoggedModel) -> None:
        """Remember a model that this process created."""
        self.models[model.model_id] = model
        if len(self.models) > _MOST_MODELS:
            self.models.popitem(last=False)

    def with_model_ids(self, text: Any) -> Any:
        """Return a text with MLflow's ids of models in place of provisional ones.

        This waits until the models are delivered. The id of a model that MLflow has not created by
        then is not replaced. Anything but a text with a provisional id is returned as it is.
        """
        if not has_provisional_id(text):
            return text
        self.wait()
        return with_ids(text, self._model_id)

    def _model_id(self, key: str) -> str:
        model = self.models.get(key)
        if key not in self._model_ids and model is not None:
            place, run_id = model.experiment_id, str(model.source_run_id)
            found = find_model(self._client(), place, run_id, key)
            if found is None:
                return key
            self._model_ids[key] = found.model_id
        return self._model_ids.get(key, key)

    def wait(self) -> bool:
        """Wait until everything that was logged so far is delivered, within a time limit.

        Returns:
            Whether everything was delivered.
        """
        if self._made_client is None:
            return True
        sender = sender_for(self._made_client)
        waiting = sender.outbox.waiting
        if waiting and not deliver_own(sender, Deadline(sender.clock.monotonic, _SECONDS_TO_WAIT)):
            _logger.warning(
                "What is read now may lack %s not yet delivered to %s. Delivery goes on.",
                counted(sender.outbox.waiting, "record"),
                sender.server,
            )
            return False
        return True

    def flush(self) -> None:
        """Wait as ``wait`` does, but for the whole time limit if the server is unreachable.

        Raises:
            IAPError: in strict mode, MLflow rejected a record, or not all were delivered in time.
        """
        if self._made_client is None:
            return
        result = flush(self._made_client, _SECONDS_TO_WAIT)
        if not self._is_strict:
            return
        sender = sender_for(self._made_client)
        new = result.refused - self._reported.get(sender, 0)
        self._reported = {sender: result.refused}
        if new:
            refused = sender.outbox.refused()[-new:]
            texts = [f"{kind} {content!r:.200}: {reason}" for kind, content, reason in refused]
            raise IAPError(
                f"MLflow rejected {'; '.join(texts)}. `mlflow-iap status` lists what was rejected."
            )
        if result.waiting:
            raise IAPError(
                f"{sender.server} did not accept {counted(result.waiting, 'record')} within "
                f"{_SECONDS_TO_WAIT:.0f} s. Delivery goes on."
            )

    def _client(self) -> MlflowClient:
        if self._made_client is None:
            self._made_client = self._new_client()
            sender_for(self._made_client)  # sets up delivery on SIGTERM
        return self._made_client
