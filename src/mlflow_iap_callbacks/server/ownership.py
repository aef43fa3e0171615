"""Who owns a record: which requests to MLflow's API name an owner, and how they are rewritten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ..tags import CLAIM_TAG

OWNER_TAG = "mlflow.user"
# Without `mlflow.trace.user`, which is the user of the traced application.
_OWNER_TAGS = {OWNER_TAG, "mlflow.auth.username", "mlflow.auth.userId"}

Body = dict[str, Any]
Rule = Callable[[Body, str], None]


class MalformedError(Exception):
    """MLflow could not read the body, for the reason in the message."""


class OwnerIsFixedError(Exception):
    """The request would remove the owner of a record."""


def rule_for(method: str, path: str) -> Rule | None:
    """Return the function that rewrites a request's body; None if the body cannot name an owner.

    Raises:
        OwnerIsFixedError: if the path of the request says that it deletes the owner's tag.
    """
    method = method.upper()  # as Flask does
    found = _API.fullmatch(re.sub("/+", "/", path))
    if method in ("GET", "HEAD", "OPTIONS") or found is None:
        return None
    if method == "DELETE" and path.rpartition("/tags/")[2] in _OWNER_TAGS:
        raise OwnerIsFixedError
    for pattern, methods, rule in _RULES:
        if method in methods and pattern.fullmatch(found["call"]):
            return rule
    return None


def parse(body: bytes) -> Body:
    """Return a body as MLflow reads it.

    Raises:
        MalformedError: if it is not a JSON object.
    """
    try:
        content = json.loads(body) if body.strip() else {}
        if isinstance(content, str):  # old clients encode it twice
            content = json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedError("it is not JSON") from None
    if not isinstance(content, dict):
        raise MalformedError("it is not a JSON object")
    return content


def _new_run(body: Body, email: str) -> None:
    claims = [body.pop(name, None) for name in ("user_id", "userId")]
    _new(body, email)
    body["user_id"] = email
    claim = next(filter(None, claims), "unknown")
    if claim not in ("unknown", email) and CLAIM_TAG not in map(_key, body["tags"]):
        body["tags"].append({"key": CLAIM_TAG, "value": str(claim)})


def _new(body: Body, email: str, name: str = "tags") -> None:
    tags = _list(body, name)
    claims = [tag.get("value") for tag in tags if _key(tag) == OWNER_TAG]
    kept = [tag for tag in tags if _key(tag) not in _OWNER_TAGS]
    kept.append({"key": OWNER_TAG, "value": email})
    if claims and claims[-1] != email:
        kept = [tag for tag in kept if _key(tag) != CLAIM_TAG]
        kept.append({"key": CLAIM_TAG, "value": claims[-1]})
    body[_name(body, name)] = kept


def _tags(body: Body, email: str, name: str = "tags") -> None:
    for tag in _list(body, name):
        _one_tag(tag, email)


def _one_tag(body: Body, email: str) -> None:
    """Keep the owner of an existing record when somebody sets one of its tags."""
    if _key(body) in _OWNER_TAGS:
        body["key"] = CLAIM_TAG


def _deleted_tag(body: Body, email: str) -> None:
    if _key(body) in _OWNER_TAGS:
        raise OwnerIsFixedError


def _new_trace(body: Body, email: str) -> None:
    if _name(body, "trace") not in body:  # MLflow 2
        _new(body, email, "request_metadata")
        _tags(body, email)
        return
    info = _object(_object(body, "trace"), "trace_info")
    metadata = _object(info, "trace_metadata")
    claim = metadata.get(OWNER_TAG, email)
    for name in _OWNER_TAGS:
        metadata.pop(name, None)
    metadata[OWNER_TAG] = email
    if claim != email:
        metadata[CLAIM_TAG] = claim
    _map_of_tags(_object(info, "tags"))
    for assessment in _list(info, "assessments"):
        _source(assessment, email)


def _ended_trace(body: Body, email: str) -> None:
    _tags(body, email, "request_metadata")
    _tags(body, email)


def _assessment(body: Body, email: str) -> None:
    _source(_object(body, "assessment"), email)


def _source(assessment: Body, email: str) -> None:
    if "source" not in assessment:
        return
    source = _object(assessment, "source")
    kind = source.get(_name(source, "source_type"))
    if kind not in ("LLM_JUDGE", "CODE", 2, 3):  # without a kind, it is a person
        source[_name(source, "source_id")] = email


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
    body[_name(body, "updated_by")] = email
    records = _inner(body, "records", [])
    for record in records if isinstance(records, list) else ():
        # MLflow reads the creator of a record from here.
        if isinstance(record, dict) and isinstance(record.get("tags"), dict):
            record["tags"].update(dict.fromkeys(_OWNER_TAGS & set(record["tags"]), email))
    body["records"] = json.dumps(records)


def _created_by(body: Body, email: str) -> None:
    body[_name(body, "created_by")] = email


def _completed_by(body: Body, email: str) -> None:
    if _name(body, "completed_by") in body:
        body[_name(body, "completed_by")] = email


def _map_of_tags(tags: Body) -> None:
    claims = [tags.pop(name) for name in sorted(_OWNER_TAGS) if name in tags]
    if claims:
        tags[CLAIM_TAG] = claims[-1]


def _key(tag: Body) -> str:
    return str(tag.get("key"))


def _name(body: Body, name: str) -> str:
    """Return the spelling of a field in a body: protobuf accepts `user_id` and `userId`."""
    first, *others = name.split("_")
    camel = first + "".join(map(str.capitalize, others))
    return camel if camel in body and name not in body else name


def _object(body: Body, name: str) -> Body:
    content = body.setdefault(_name(body, name), {})
    if content is None:
        content = body[_name(body, name)] = {}
    if not isinstance(content, dict):
        raise MalformedError(f"{name} is not a JSON object")
    return content


def _list(body: Body, name: str) -> list[Body]:
    content = body.get(_name(body, name)) or []
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise MalformedError(f"{name} is not a list of JSON objects")
    return content


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


_API = re.compile(r"/(ajax-)?api/\d+\.\d+/mlflow/(?P<call>.*?)/?", re.DOTALL)
_RULES: list[tuple[re.Pattern[str], set[str], Rule]] = [
    (re.compile(pattern), set(methods.split()), rule)
    for pattern, methods, rule in (
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
]
