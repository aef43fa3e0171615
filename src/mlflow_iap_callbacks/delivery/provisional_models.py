"""Logged models that MLflow creates later: until then, each has a provisional id."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from ..limits import MAX_MODEL_PARAMS
from ..outbox import Record, Refusal
from ..tags import MODEL_KEY_TAG
from .clock import Clock
from .models import find_model
from .refusals import NotYet

_logger = logging.getLogger("mlflow_iap_callbacks")

# A provisional id has the form of MLflow's ids, and is recognised by these first characters.
_PREFIX = "m-10ca1000"
_PROVISIONAL_ID = re.compile(_PREFIX + "[0-9a-f]{24}")
_WITHOUT_MODELS = ("metrics", "curve")  # kinds of records that contain no ids of models
# Seconds for which records wait for a model that another process is to create. After an outage,
# that process may take a minute until its next try. If it was killed, a minute may pass until
# another process takes over its journal.
_SECONDS_TO_APPEAR = 180.0
_SECONDS_BETWEEN_LOOKS = 2.0


def new_provisional_id() -> str:
    """Return an id for a model that MLflow has not created yet."""
    return _PREFIX + uuid.uuid4().hex[:24]


def has_provisional_id(text: object) -> bool:
    """Return whether a text contains a provisional id."""
    return isinstance(text, str) and _PREFIX in text


def with_ids(value: Any, id_of: Callable[[str], str]) -> Any:
    """Return plain data with MLflow's ids of models instead of provisional ones."""
    if isinstance(value, str):
        return _PROVISIONAL_ID.sub(lambda found: id_of(found[0]), value)
    if isinstance(value, dict):
        return {with_ids(name, id_of): with_ids(each, id_of) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_ids(each, id_of) for each in value]
    return value


class ProvisionalModels:
    """MLflow's ids of the models that were logged with a provisional id, which is their key.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids: dict[str, str] = {}  # a key that stays as it is has no model
        self._refused: set[str] = set()  # keys of models that MLflow rejected
        self._missed: dict[str, float] = {}  # when each missing one was first looked for

    def create(self, client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> None:
        """Create a model, unless an earlier attempt did so and its response was lost.

        Args:
            client: any MlflowClient.
            run_id: run that the model comes from.
            content: the arguments of MLflow's API; ``key``, the provisional id; and
                ``has_run_params``, whether the model also gets the run's params.
        """
        key, experiment_id, params = content["key"], content["experiment_id"], content["params"]
        if content["has_run_params"]:
            params = {**params, **client.get_run(run_id).data.params}
        model = find_model(client, experiment_id, run_id, key) or client.create_logged_model(
            experiment_id,
            content["name"],
            source_run_id=run_id,
            tags={**content["tags"], MODEL_KEY_TAG: key},
            params=dict(islice(params.items(), MAX_MODEL_PARAMS)),
            model_type=content["model_type"],
        )
        known = model.params or {}
        missing = {name: value for name, value in params.items() if name not in known}
        if missing:
            client.log_model_params(model.model_id, missing)
        self._ids[key] = model.model_id

    def note_refused(self, refused: Iterable[Refusal]) -> None:
        """Note which models MLflow rejected, so that no record waits for them."""
        self._refused.update(each.content["key"] for each in refused if each.kind == "model_start")

    def with_ids(self, client: MlflowClient, run_id: str, record: Record) -> Record:
        """Return a record with MLflow's ids of models instead of provisional ones.

        Args:
            client: any MlflowClient.
            run_id: run that the record belongs to, and that its models come from.
            record: the record. For the files of a model, see ``write_ids``.

        Raises:
            NotYet: another process may still create a model that the record names.
        """
        content = record.content
        if record.kind in _WITHOUT_MODELS:
            return record
        if record.kind == "points" and not any(len(point) > 4 for point in content):
            return record

        def id_of(key: str) -> str:
            return self._id(client, run_id, key)

        if record.kind == "points":
            content = [_point(point, id_of) for point in content]
        else:
            content = with_ids(content, id_of)
        return record._replace(content=content)

    def write_ids(self, client: MlflowClient, run_id: str, folder: str) -> None:
        """Write MLflow's id of a saved model into its file ``MLmodel``."""
        path = Path(folder, "MLmodel")
        text = path.read_text("utf-8") if path.is_file() else ""
        if has_provisional_id(text):
            found = with_ids(text, lambda key: self._id(client, run_id, key))
            path.write_text(found, "utf-8")

    def _id(self, client: MlflowClient, run_id: str, key: str) -> str:
        if key not in self._ids:  # another process creates it, or MLflow rejected it
            experiment_id = client.get_run(run_id).info.experiment_id
            found = find_model(client, experiment_id, run_id, key)
            if found is None and key not in self._refused:
                self._wait(key)
            # Another thread may have created it meanwhile.
            self._ids.setdefault(key, key if found is None else found.model_id)
        return self._ids[key]

    def _wait(self, key: str) -> None:
        """Raise NotYet, but not for ever: the record of the model's creation may be lost."""
        now = self._clock.monotonic()
        wait = self._missed.setdefault(key, now) + _SECONDS_TO_APPEAR - now
        if wait > 0:
            why = "A logged model, which another process is to create, does not exist yet."
            raise NotYet(why, min(wait, _SECONDS_BETWEEN_LOOKS), is_overtaken=True)
        _logger.warning(
            "No process has created the logged model %s within %.0f s. What was logged for it is "
            "sent without it.",
            key,
            _SECONDS_TO_APPEAR,
        )


def _point(point: list[Any], id_of: Callable[[str], str]) -> list[Any]:
    """Return a point with MLflow's id of its model, or without an id if there is no such model."""
    found = with_ids(point, id_of)
    if len(found) > 4 and has_provisional_id(found[4]):
        found[4] = None
    return list(found)
