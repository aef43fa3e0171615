"""Who owns a record: how the requests to MLflow's API that can name an owner are rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..tags import CLAIM_TAG, STARTER_TAG
from .mlflow_body import Body, ForbiddenError, MalformedError, list_in, name_in, object_in
from .tag_keys import is_one_of

OWNER_TAG = "mlflow.user"
# Without `mlflow.trace.user`, which is the user of the traced application.
_OWNER_TAGS = (OWNER_TAG, "mlflow.auth.username", "mlflow.auth.userId")
# Tags and metadata that only the server sets, once and for all: whoever may edit an experiment sets
# all other tags of its traces, also of other users' ones.
_OF_SERVER = (
    *("mlflow.artifactLocation", "mlflow.trace.archiveLocation", "mlflow.trace.spansLocation"),
    STARTER_TAG,
)

Rule = Callable[[Body, str], None]


def is_owner_key(key: object) -> bool:
    """Whether a tag with this key names the owner of a record, for MLflow or for its database."""
    return is_one_of(key, _OWNER_TAGS)


def is_of_server(key: object) -> bool:
    """Whether only the server sets a tag of a trace with this key."""
    return is_one_of(key, _OF_SERVER)


def require_kept(method: str, path: str) -> None:
    """Check the path of a request.

    Raises:
        ForbiddenError: if it says that the request deletes the owner's tag.
    """
    _, is_tag, key = path.rstrip("/").rpartition("/tags/")
    if method.upper() == "DELETE" and is_tag:
        _require_not_of_owner(key)


def new_run(body: Body, email: str) -> None:
    claims = [body.pop(name, None) for name in ("user_id", "userId")]
    new(body, email)
    body["user_id"] = email
    claim = next(filter(None, claims), "unknown")
    if claim not in ("unknown", email) and CLAIM_TAG not in map(_key, body["tags"]):
        body["tags"].append({"key": CLAIM_TAG, "value": str(claim)})


def new(body: Body, email: str, name: str = "tags") -> None:
    tags = list_in(body, name)
    claims = [tag.get("value") for tag in tags if is_one_of(_key(tag), [OWNER_TAG])]
    kept = [tag for tag in tags if not is_owner_key(_key(tag))]
    kept.append({"key": OWNER_TAG, "value": email})
    if claims and claims[-1] != email:
        kept = [tag for tag in kept if _key(tag) != CLAIM_TAG]
        kept.append({"key": CLAIM_TAG, "value": claims[-1]})
    body[name_in(body, name)] = kept


def tags(body: Body, email: str, name: str = "tags") -> None:
    for tag in list_in(body, name):
        one_tag(tag, email)


def one_tag(body: Body, email: str) -> None:
    """Keep the owner of an existing record when somebody sets one of its tags."""
    if is_owner_key(_key(body)):
        body["key"] = CLAIM_TAG


def deleted_tag(body: Body, email: str) -> None:
    _require_not_of_owner(_key(body))


def _require_not_of_owner(key: str) -> None:
    if is_owner_key(key):
        message = "The owner of a record is the user who created it, and cannot be removed."
        raise ForbiddenError(message)


def tag_of_trace(body: Body, email: str) -> None:
    _require_not_of_server(body)
    one_tag(body, email)


def deleted_tag_of_trace(body: Body, email: str) -> None:
    _require_not_of_server(body)
    deleted_tag(body, email)


def _require_not_of_server(tag: Body) -> None:
    if is_of_server(_key(tag)):
        raise ForbiddenError(
            f"The trace tag {_key(tag)} is set by the server and cannot be changed: omit it."
        )


def new_trace(body: Body, email: str) -> None:
    # A body may have the fields of both versions. Which ones MLflow reads depends on the route.
    new(body, email, "request_metadata")
    tags(body, email)
    _remove_tags_of_server(body)
    if "trace" in body:  # MLflow 3
        _new_trace_of_mlflow_3(body, email)


def _new_trace_of_mlflow_3(body: Body, email: str) -> None:
    info = object_in(object_in(body, "trace"), "trace_info")
    for given in (object_in(info, "trace_metadata"), object_in(info, "tags")):
        for key in [*filter(is_of_server, given)]:
            del given[key]
    _new_map(object_in(info, "trace_metadata"), email)
    _map_of_tags(object_in(info, "tags"))
    for assessment in list_in(info, "assessments"):
        _source(assessment, email)


def ended_trace(body: Body, email: str) -> None:
    tags(body, email, "request_metadata")
    tags(body, email)
    _remove_tags_of_server(body)


def _remove_tags_of_server(body: Body) -> None:
    for name in ("request_metadata", "tags"):
        given = list_in(body, name)
        given[:] = [tag for tag in given if not is_of_server(_key(tag))]


def assessment(body: Body, email: str) -> None:
    _source(object_in(body, "assessment"), email)


def _source(assessment: Body, email: str) -> None:
    if "source" not in assessment:
        return
    source = object_in(assessment, "source")
    kind = source.get(name_in(source, "source_type"))
    if kind not in ("LLM_JUDGE", "CODE", 2, 3):  # without a kind, it is a person
        source[name_in(source, "source_id")] = email


def new_dataset(body: Body, email: str) -> None:
    created_by(body, email)
    tags = _inner_object(body, "tags")
    _new_map(tags, email)
    body["tags"] = json.dumps(tags)


def dataset_tags(body: Body, email: str) -> None:
    tags = _inner_object(body, "tags")
    _map_of_tags(tags)
    body["tags"] = json.dumps(tags)


def dataset_records(body: Body, email: str) -> None:
    body[name_in(body, "updated_by")] = email
    records = _inner(body, "records", [])
    for record in records if isinstance(records, list) else ():
        # MLflow reads the creator of a record from here.
        if isinstance(record, dict) and isinstance(record.get("tags"), dict):
            record["tags"].update(dict.fromkeys(filter(is_owner_key, record["tags"]), email))
    body["records"] = json.dumps(records)


def created_by(body: Body, email: str) -> None:
    body[name_in(body, "created_by")] = email


def completed_by(body: Body, email: str) -> None:
    _replace(body, email, "completed_by")


def last_updated_by(body: Body, email: str) -> None:
    _replace(body, email, "last_updated_by")  # of MLflow 3.18


def _replace(body: Body, email: str, name: str) -> None:
    if name_in(body, name) in body:
        body[name_in(body, name)] = email


def _new_map(tags: Body, email: str) -> None:
    claims = [tags[key] for key in tags if is_one_of(key, [OWNER_TAG])]
    for key in [*filter(is_owner_key, tags)]:
        del tags[key]
    tags[OWNER_TAG] = email
    if claims and claims[-1] != email:
        tags[CLAIM_TAG] = claims[-1]


def _map_of_tags(tags: Body) -> None:
    claims = [tags.pop(key) for key in sorted(filter(is_owner_key, tags))]
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
