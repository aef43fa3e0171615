"""Who owns a record: which requests to MLflow's API name an owner, and how they are rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..tags import CLAIM_TAG
from .mlflow_body import (
    Body,
    MalformedError,
    Rules,
    call_of,
    first_rule,
    list_in,
    name_in,
    object_in,
    rules,
)

OWNER_TAG = "mlflow.user"
# Without `mlflow.trace.user`, which is the user of the traced application.
_OWNER_TAGS = {OWNER_TAG, "mlflow.auth.username", "mlflow.auth.userId"}

Rule = Callable[[Body, str], None]


class OwnerIsFixedError(Exception):
    """The request would remove the owner of a record."""


def rule_for(method: str, path: str) -> Rule | None:
    """Return the function that rewrites a request's body; None if the body cannot name an owner.

    Raises:
        OwnerIsFixedError: if the path of the request says that it deletes the owner's tag.
    """
    is_deletion = method.upper() == "DELETE" and call_of(path) is not None
    if is_deletion and path.rpartition("/tags/")[2] in _OWNER_TAGS:
        raise OwnerIsFixedError
    return first_rule(_RULES, method, path)


def _new_run(body: Body, email: str) -> None:
    claims = [body.pop(name, None) for name in ("user_id", "userId")]
    _new(body, email)
    body["user_id"] = email
    claim = next(filter(None, claims), "unknown")
    if claim not in ("unknown", email) and CLAIM_TAG not in map(_key, body["tags"]):
        body["tags"].append({"key": CLAIM_TAG, "value": str(claim)})


def _new(body: Body, email: str, name: str = "tags") -> None:
    tags = list_in(body, name)
    claims = [tag.get("value") for tag in tags if _key(tag) == OWNER_TAG]
    kept = [tag for tag in tags if _key(tag) not in _OWNER_TAGS]
    kept.append({"key": OWNER_TAG, "value": email})
    if claims and claims[-1] != email:
        kept = [tag for tag in kept if _key(tag) != CLAIM_TAG]
        kept.append({"key": CLAIM_TAG, "value": claims[-1]})
    body[name_in(body, name)] = kept


def _tags(body: Body, email: str, name: str = "tags") -> None:
    for tag in list_in(body, name):
        _one_tag(tag, email)


def _one_tag(body: Body, email: str) -> None:
    """Keep the owner of an existing record when somebody sets one of its tags."""
    if _key(body) in _OWNER_TAGS:
        body["key"] = CLAIM_TAG


def _deleted_tag(body: Body, email: str) -> None:
    if _key(body) in _OWNER_TAGS:
        raise OwnerIsFixedError


def _new_trace(body: Body, email: str) -> None:
    if name_in(body, "trace") not in body:  # MLflow 2
        _new(body, email, "request_metadata")
        _tags(body, email)
        return
    info = object_in(object_in(body, "trace"), "trace_info")
    metadata = object_in(info, "trace_metadata")
    claim = metadata.get(OWNER_TAG, email)
    for name in _OWNER_TAGS:
        metadata.pop(name, None)
    metadata[OWNER_TAG] = email
    if claim != email:
        metadata[CLAIM_TAG] = claim
    _map_of_tags(object_in(info, "tags"))
    for assessment in list_in(info, "assessments"):
        _source(assessment, email)


def _ended_trace(body: Body, email: str) -> None:
    _tags(body, email, "request_metadata")
    _tags(body, email)


def _assessment(body: Body, email: str) -> None:
    _source(object_in(body, "assessment"), email)


def _source(assessment: Body, email: str) -> None:
    if "source" not in assessment:
        return
    source = object_in(assessment, "source")
    kind = source.get(name_in(source, "source_type"))
    if kind not in ("LLM_JUDGE", "CODE", 2, 3):  # without a kind, it is a person
        source[name_in(source, "source_id")] = email


def _new_dataset(body: Body, email: str) -> None:
    _created_by(body, email)
    tags = _inner_object(body, "tags")
    claim = tags.get(OWNER_TAG, email)
    tags[OWNER_TAG] = email
    if claim != email:
        tags[CLAIM_TAG] = claim
    body["tags"] = json.dumps(tags)


def _dataset_tags(body: Body, email: str) -> None:
    tags = _inner_object(body, "tags")
    _map_of_tags(tags)
    body["tags"] = json.dumps(tags)


def _dataset_records(body: Body, email: str) -> None:
    body[name_in(body, "updated_by")] = email
    records = _inner(body, "records", [])
    for record in records if isinstance(records, list) else ():
        # MLflow reads the creator of a record from here.
        if isinstance(record, dict) and isinstance(record.get("tags"), dict):
            record["tags"].update(dict.fromkeys(_OWNER_TAGS & set(record["tags"]), email))
    body["records"] = json.dumps(records)


def _created_by(body: Body, email: str) -> None:
    body[name_in(body, "created_by")] = email


def _completed_by(body: Body, email: str) -> None:
    if name_in(body, "completed_by") in body:
        body[name_in(body, "completed_by")] = email


def _map_of_tags(tags: Body) -> None:
    claims = [tags.pop(name) for name in sorted(_OWNER_TAGS) if name in tags]
    if claims:
        tags[CLAIM_TAG] = claims[-1]


def _key(tag: Body) -> str:
    return str(tag.get("key"))


def _inner(body: Body, name: str, default: Any) -> Any:
    """Return a field that is JSON within a JSON string."""
    text = body.get(name)
    if not text:
        return default
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise MalformedError(f"{name} is not JSON in a string") from None


def _inner_object(body: Body, name: str) -> Body:
    content = _inner(body, name, {})
    if not isinstance(content, dict):
        raise MalformedError(f"{name} is not a JSON object in a string")
    return content


_RULES: Rules[Rule] = rules(
    ("runs/create", "POST", _new_run),
    ("(experiments|registered-models|model-versions)/create", "POST", _new),
    ("logged-models", "POST", _new),
    ("runs/log-batch", "POST", _tags),
    ("logged-models/[^/]+/tags", "PATCH", _tags),
    ("(runs|registered-models|model-versions)/set-tag", "POST", _one_tag),
    ("experiments/set-experiment-tag", "POST", _one_tag),
    ("traces/[^/]+/tags", "PATCH", _one_tag),
    ("(runs|registered-models|model-versions)/delete-tag", "POST DELETE", _deleted_tag),
    ("experiments/delete-experiment-tag", "POST", _deleted_tag),
    ("traces/[^/]+/tags", "DELETE", _deleted_tag),
    ("traces", "POST", _new_trace),
    ("traces/[^/]+", "PATCH", _ended_trace),
    ("traces/[^/]+/assessments(/[^/]+)?", "POST PATCH", _assessment),
    ("datasets/create", "POST", _new_dataset),
    ("datasets/[^/]+/tags", "PATCH", _dataset_tags),
    ("datasets/[^/]+/records", "POST", _dataset_records),
    ("(issues|review-queues/create)", "POST", _created_by),
    ("review-queues/items/set-status", "POST", _completed_by),
)
