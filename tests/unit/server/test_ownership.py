"""Who owns the records that clients write."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from asgi import Answer, Recorder, call
from mlflow_iap_callbacks.server.body_middleware import BodyMiddleware
from mlflow_iap_callbacks.server.gate import visitor
from mlflow_iap_callbacks.server.mlflow_body import ForbiddenError
from mlflow_iap_callbacks.server.ownership import require_kept
from mlflow_iap_callbacks.server.routes import route_of

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

ADA = "ada@example.com"
EVE = "eve@example.com"
CLAIM = {"key": "mlflow_iap.claimed_user", "value": EVE}
OWNER = {"key": "mlflow.user", "value": ADA}
CLAIMED_OWNER = {"key": "mlflow.user", "value": EVE}
OTHER = {"key": "mlflow.source.name", "value": "train.py"}
MLFLOW = "/api/2.0/mlflow"
MLFLOW_3 = "/api/3.0/mlflow"


def ask(path: str, body: Any, method: str = "POST", **headers: str) -> tuple[Answer, Recorder]:
    app = Recorder()
    pieces = body if isinstance(body, bytes | list) else json.dumps(body).encode()

    middleware = BodyMiddleware(app, static_prefix="/prefix")

    async def as_ada() -> Answer:
        visitor.set(ADA)
        return await call(middleware, path, method, headers, pieces)

    return asyncio.run(as_ada()), app


def arrived(path: str, body: Any, method: str = "POST") -> Any:
    """Return a body as MLflow receives it."""
    answer, app = ask(path, body, method)
    assert answer.status == 200, answer.body
    assert app.headers["content-length"] == str(len(app.body))
    return json.loads(app.body)


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/runs/create",
        "/ajax-api/2.0/mlflow/runs/create",
        "/api/3.0/mlflow/runs/create",
        "/prefix/ajax-api/2.0/mlflow/runs/create",
        "/api/2.0/mlflow/runs/create/",
        "//api/2.0//mlflow/runs/create",
    ],
)
@pytest.mark.parametrize(
    "claim",
    [
        {"user_id": EVE},
        {"userId": EVE},
        {"tags": [OTHER, CLAIMED_OWNER]},
        {"user_id": "root", "tags": [CLAIMED_OWNER]},
        {"user_id": EVE, "tags": None},
    ],
)
def test_a_run_belongs_to_its_sender_and_a_tag_keeps_the_claimed_user(
    path: str, claim: dict[str, Any]
) -> None:
    got = arrived(path, {"experiment_id": "1", **claim})
    assert got["user_id"] == ADA
    assert "userId" not in got
    assert OWNER in got["tags"]
    assert CLAIM in got["tags"]
    assert CLAIMED_OWNER not in got["tags"]
    assert (OTHER in got["tags"]) == (OTHER in (claim.get("tags") or []))


@pytest.mark.parametrize("user", ["unknown", "", ADA, None])
def test_without_a_claimed_user_no_tag_is_added_for_it(user: str | None) -> None:
    got = arrived(f"{MLFLOW}/runs/create", {"user_id": user})
    assert got == {"user_id": ADA, "tags": [OWNER]}


@pytest.mark.parametrize(
    "name",
    ["registered-models/create", "model-versions/create", "logged-models", "experiments/create"],
)
def test_a_new_record_belongs_to_its_sender(name: str) -> None:
    assert arrived(f"{MLFLOW}/{name}", {"name": "m"})["tags"] == [OWNER]
    assert arrived(f"{MLFLOW}/{name}", {"tags": [CLAIMED_OWNER, OTHER]})["tags"] == [
        *(OTHER, OWNER, CLAIM)
    ]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("runs/set-tag", "POST"),
        ("experiments/set-experiment-tag", "POST"),
        ("registered-models/set-tag", "POST"),
        ("model-versions/set-tag", "POST"),
        ("traces/tr-1/tags", "PATCH"),
    ],
)
def test_setting_the_owners_tag_does_not_change_the_owner(name: str, method: str) -> None:
    assert arrived(f"{MLFLOW}/{name}", {"run_id": "1", **CLAIMED_OWNER}, method) == {
        "run_id": "1",
        **CLAIM,
    }
    assert arrived(f"{MLFLOW}/{name}", {"run_id": "1", **OTHER}, method) == {"run_id": "1", **OTHER}


# Keys that some collation considers equal to the first one.
SPELLINGS = [
    *("mlflow.user ", "MLflow.User", "mlflow.us\u00e9r", "\uff4dlflow.user", "\tmlflow.user\n"),
    *("ml\ufb02ow.user", "mlflow\u200b.user", "mlfl\u00f8w.u\u017fer", "mlflow.user\u00a0"),
    *(
        "MLFLOW.AUTH.USERNAME",
        "mlflow.auth.user\u0131d",
        "mlflow.u\u0301ser",
        "mlflow.use\U0001d42b",
    ),
]


@pytest.mark.parametrize("key", SPELLINGS)
def test_a_key_that_the_database_may_consider_equal_is_the_owners_tag_too(key: str) -> None:
    claim = {"key": key, "value": EVE}
    assert arrived(f"{MLFLOW}/runs/set-tag", claim) == CLAIM
    assert arrived(f"{MLFLOW}/runs/log-batch", {"tags": [claim]}) == {"tags": [CLAIM]}
    assert {"key": key, "value": EVE} not in arrived(f"{MLFLOW}/runs/create", {"tags": [claim]})[
        "tags"
    ]
    info = {"trace_metadata": {key: EVE}, "tags": {key: EVE}}
    got = arrived(f"{MLFLOW_3}/traces", {"trace": {"trace_info": info}})["trace"]["trace_info"]
    assert got["trace_metadata"]["mlflow.user"] == ADA
    assert key not in {**got["trace_metadata"], **got["tags"]}
    for name in ("runs/delete-tag", "experiments/delete-experiment-tag"):
        assert ask(f"{MLFLOW}/{name}", {"key": key})[0].status == 403
    assert ask(f"{MLFLOW}/logged-models/m-1/tags/{key}", {}, "DELETE")[0].status == 403


@pytest.mark.parametrize(
    "key",
    ["mlflow.users", "mlflow.user2", "mlflow.trace.user", "user", "", "mlflow_user", "\u7528"],
)
def test_another_key_is_not_the_owners_tag(key: str) -> None:
    assert arrived(f"{MLFLOW}/runs/set-tag", {"key": key, "value": EVE}) == {
        **{"key": key, "value": EVE}
    }


@pytest.mark.parametrize(
    ("name", "method"), [("runs/log-batch", "POST"), ("logged-models/m-1/tags", "PATCH")]
)
def test_setting_the_owners_tag_in_a_batch_does_not_change_the_owner(
    name: str, method: str
) -> None:
    metrics = [{"key": "mlflow.user", "value": 0.1 + 0.2, "timestamp": 2**53, "step": 1}]
    got = arrived(f"{MLFLOW}/{name}", {"metrics": metrics, "tags": [OTHER, CLAIMED_OWNER]}, method)
    assert got == {"metrics": metrics, "tags": [OTHER, CLAIM]}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("runs/delete-tag", "POST"),
        ("experiments/delete-experiment-tag", "POST"),
        ("registered-models/delete-tag", "DELETE"),
        ("model-versions/delete-tag", "DELETE"),
        ("traces/tr-1/tags", "DELETE"),
        ("logged-models/m-1/tags/mlflow.user", "DELETE"),
        ("datasets/d-1/tags/mlflow.user", "DELETE"),
    ],
)
def test_the_owners_tag_cannot_be_deleted(name: str, method: str) -> None:
    answer, app = ask(f"{MLFLOW}/{name}", {"run_id": "1", "key": "mlflow.user"}, method)
    assert (answer.status, app.calls) == (403, 0)
    assert json.loads(answer.body)["error_code"] == "PERMISSION_DENIED"


def test_a_trace_belongs_to_its_sender_and_keeps_the_user_of_its_application() -> None:
    for trace, info, metadata in (
        ("trace", "trace_info", "trace_metadata"),
        ("trace", "traceInfo", "traceMetadata"),
    ):
        content = {"mlflow.user": EVE, "mlflow.trace.user": "customer", "mlflow.auth.username": EVE}
        got = arrived(f"{MLFLOW_3}/traces", {trace: {info: {metadata: content}}})
        assert got[trace][info][metadata] == {
            "mlflow.user": ADA,
            "mlflow_iap.claimed_user": EVE,
            "mlflow.trace.user": "customer",
        }
    bare = arrived(f"{MLFLOW_3}/traces", {"trace": {"trace_info": {"trace_id": "1"}}})
    assert bare["trace"]["trace_info"]["trace_metadata"] == {"mlflow.user": ADA}


def test_a_trace_of_mlflow_2_belongs_to_its_sender() -> None:
    got = arrived(f"{MLFLOW}/traces", {"request_metadata": [CLAIMED_OWNER], "tags": [OTHER]})
    assert got == {"request_metadata": [OWNER, CLAIM], "tags": [OTHER]}
    ended = arrived(f"{MLFLOW}/traces/tr-1", {"request_metadata": [CLAIMED_OWNER]}, "PATCH")
    assert ended == {"request_metadata": [CLAIM]}


_OF_SERVER = (
    *("mlflow.artifactLocation", "mlflow.trace.archiveLocation", "mlflow.trace.spansLocation"),
    *("mlflow_iap.started_by", "MLflow.ArtifactLocation ", "mlflow_iap.Started_By"),
)
_PLACE = "mlflow-artifacts:/1/a"


@pytest.mark.parametrize("key", _OF_SERVER)
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_nobody_sets_or_deletes_where_a_trace_is_stored_and_who_started_it(
    key: str, method: str
) -> None:
    answer, app = ask(f"{MLFLOW_3}/traces/tr-1/tags", {"key": key, "value": _PLACE}, method)
    assert (answer.status, app.calls) == (403, 0)
    assert json.loads(answer.body) == {
        "error_code": "PERMISSION_DENIED",
        "message": f"The trace tag {key} is set by the server and cannot be changed: omit it.",
    }


@pytest.mark.parametrize("key", ["mlflow.traceName", "mlflow.source.name", "note", "loss"])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_any_other_tag_of_a_trace_is_left_to_mlflows_permissions(key: str, method: str) -> None:
    body = {"key": key, "value": "a"}
    assert arrived(f"{MLFLOW_3}/traces/tr-1/tags", body, method) == body


@pytest.mark.parametrize("key", _OF_SERVER)
def test_a_request_that_starts_or_ends_a_trace_leaves_them_to_the_server(key: str) -> None:
    tag, tags = {"key": key, "value": _PLACE}, {key: _PLACE, "note": "a"}
    info = {"tags": dict(tags), "trace_metadata": dict(tags)}
    started = arrived(f"{MLFLOW_3}/traces", {"trace": {"trace_info": info}})
    assert started["trace"]["trace_info"] == {
        "tags": {"note": "a"},
        "trace_metadata": {"note": "a", "mlflow.user": ADA},
    }
    lists = {"tags": [tag, OTHER, tag], "request_metadata": [OTHER, tag]}
    started = arrived(f"{MLFLOW}/traces", lists)
    assert started == {"tags": [OTHER], "request_metadata": [OTHER, OWNER]}
    lists = {"tags": [tag], "requestMetadata": [OTHER, tag]}
    ended = arrived(f"{MLFLOW}/traces/tr-1", lists, "PATCH")
    assert ended == {"tags": [], "requestMetadata": [OTHER]}


def test_a_long_list_of_tags_that_only_the_server_sets_is_removed_in_one_pass() -> None:
    others = [{"key": str(number)} for number in range(60_000)]
    tag = {"key": "mlflow.artifactLocation"}
    got = arrived(f"{MLFLOW}/traces/tr-1", {"tags": [*others, *[tag] * 60_000]}, "PATCH")
    assert got == {"tags": others}


@pytest.mark.parametrize("path", [f"{MLFLOW}/traces", f"{MLFLOW_3}/traces"])
def test_a_trace_has_no_other_owner_in_the_fields_of_another_version(path: str) -> None:
    info = {"trace_metadata": {"mlflow.user": EVE}, "tags": {"mlflow.artifactLocation": _PLACE}}
    lists = {"tags": [{"key": "mlflow.artifactLocation", "value": _PLACE}]}
    for trace in ({"trace_info": info}, {}, None):
        body = {"trace": trace, "request_metadata": [CLAIMED_OWNER], **lists}
        got = arrived(path, body)
        assert (got["request_metadata"], got["tags"]) == ([OWNER, CLAIM], [])
        assert got["trace"]["trace_info"]["trace_metadata"]["mlflow.user"] == ADA
        assert got["trace"]["trace_info"]["tags"] == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{MLFLOW_3}/issues", {"created_by": ADA, "createdBy": EVE}),
        (f"{MLFLOW_3}/datasets/create", {"createdBy": EVE, "created_by": ADA}),
        (f"{MLFLOW_3}/datasets/d-1/records", {"updated_by": ADA, "updatedBy": EVE}),
        (f"{MLFLOW}/traces", {"request_metadata": [], "requestMetadata": [CLAIMED_OWNER]}),
        (f"{MLFLOW_3}/traces", {"trace": {"trace_info": {}, "traceInfo": {}}}),
        (
            f"{MLFLOW_3}/traces",
            {
                "trace": {
                    "trace_info": {"trace_metadata": {}, "traceMetadata": {"mlflow.user": EVE}}
                }
            },
        ),
        (
            f"{MLFLOW_3}/traces/tr-1/assessments",
            {"assessment": {"source": {"source_type": "CODE", "sourceType": "HUMAN"}}},
        ),
    ],
)
def test_a_field_with_two_spellings_is_rejected_because_protobuf_reads_the_last_one(
    path: str, body: Any
) -> None:
    answer, app = ask(path, body)
    assert (answer.status, app.calls) == (400, 0)
    assert b"it has both" in answer.body


@pytest.mark.parametrize("spelling", [("source_type", "source_id"), ("sourceType", "sourceId")])
def test_a_persons_assessment_gets_the_senders_name_and_a_judges_keeps_its_own(
    spelling: tuple[str, str],
) -> None:
    kind, name = spelling
    path = f"{MLFLOW_3}/traces/tr-1/assessments"
    for person in ("HUMAN", 1):
        got = arrived(path, {"assessment": {"source": {kind: person, name: EVE}}})
        assert got["assessment"]["source"] == {kind: person, name: ADA}
    judge = {"assessment": {"source": {kind: "LLM_JUDGE", name: "gpt"}}}
    assert arrived(path, judge) == judge


def test_fields_for_the_creator_get_the_senders_name() -> None:
    for name in ("issues", "review-queues/create"):
        assert arrived(f"{MLFLOW_3}/{name}", {"createdBy": EVE}) == {"createdBy": ADA}
        assert arrived(f"{MLFLOW_3}/{name}", {}) == {"created_by": ADA}
    changed = arrived(f"{MLFLOW_3}/issues/i-1", {"lastUpdatedBy": EVE, "name": "n"}, "PATCH")
    assert changed == {"lastUpdatedBy": ADA, "name": "n"}
    done = arrived(f"{MLFLOW_3}/review-queues/items/set-status", {"completed_by": EVE})
    assert done == {"completed_by": ADA}


def test_tags_of_datasets_that_are_json_in_a_string_are_rewritten() -> None:
    path = f"{MLFLOW_3}/datasets/create"
    got = arrived(path, {"name": "d", "tags": json.dumps({"mlflow.user": EVE, "a": "b"})})
    tags = {"mlflow.user": ADA, "a": "b", "mlflow_iap.claimed_user": EVE}
    assert (json.loads(got["tags"]), got["created_by"]) == (tags, ADA)
    changed = arrived(
        f"{MLFLOW_3}/datasets/d-1/tags", {"tags": json.dumps({"mlflow.user": EVE})}, "PATCH"
    )
    assert json.loads(changed["tags"]) == {"mlflow_iap.claimed_user": EVE}
    records = [{"inputs": {"mlflow.user": EVE}, "tags": {"mlflow.user": EVE}}, {"inputs": {}}]
    got = arrived(f"{MLFLOW_3}/datasets/d-1/records", {"records": json.dumps(records)})
    assert json.loads(got["records"]) == [
        {"inputs": {"mlflow.user": EVE}, "tags": {"mlflow.user": ADA}},
        {"inputs": {}},
    ]
    assert got["updated_by"] == ADA


@pytest.mark.parametrize(
    "body",
    [
        b'{"user_id": "eve@example.com"}'.decode().encode("utf-16"),
        b'{"user_id": "ada@example.com", "user_id": "eve@example.com"}',
        b'{"user\\u005fid": "eve@example.com"}',
        json.dumps(json.dumps({"user_id": EVE})).encode(),
        b'\n {"user_id": "eve@example.com"} ',
        [b'{"user_id": "eve@', b"", b'example.com"}'],
    ],
)
def test_every_encoding_that_mlflow_reads_is_rewritten(body: Any) -> None:
    assert arrived(f"{MLFLOW}/runs/create", body) == {"user_id": ADA, "tags": [OWNER, CLAIM]}


@pytest.mark.parametrize("method", ["post", "Post"])
def test_a_method_in_lower_case_is_rewritten_because_flask_accepts_it(method: str) -> None:
    body = {"user_id": EVE}
    assert arrived(f"{MLFLOW}/runs/create", body, method)["user_id"] == ADA


def test_a_run_created_with_an_empty_body_has_an_owner() -> None:
    assert arrived(f"{MLFLOW}/runs/create", b"") == {"user_id": ADA, "tags": [OWNER]}


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        b"1",
        b"\xff\xff",
        b"[" * 100_000,
        json.dumps("no json").encode(),
        {"tags": {"mlflow.user": EVE}},
        {"tags": [["mlflow.user", EVE]]},
        {"tags": "mlflow.user"},
    ],
)
def test_a_body_that_mlflow_cannot_read_does_not_reach_it(body: Any) -> None:
    answer, app = ask(f"{MLFLOW}/runs/create", body)
    assert (answer.status, app.calls) == (400, 0)
    assert json.loads(answer.body)["error_code"] == "INVALID_PARAMETER_VALUE"


def test_a_compressed_body_is_rejected_because_mlflow_would_read_it_as_empty() -> None:
    body = gzip.compress(json.dumps({"user_id": EVE}).encode())
    answer, app = ask(f"{MLFLOW}/runs/create", body, **{"Content-Encoding": "gzip"})
    assert (answer.status, app.calls) == (400, 0)
    assert b"gzip" in answer.body


def test_a_body_above_the_limit_is_rejected_before_it_has_arrived_completely() -> None:
    pieces = [b" " * 1024 * 1024] * 8 + [b"{", b"}" * 9 * 1024 * 1024]
    answer, app = ask(f"{MLFLOW}/runs/log-batch", pieces)
    assert (answer.status, app.calls) == (413, 0)


def test_a_large_batch_passes_unchanged() -> None:
    body = {"metrics": [{"key": f"m{n}", "value": n / 7} for n in range(20_000)]}
    assert arrived(f"{MLFLOW}/runs/log-batch", body) == body


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/api/2.0/mlflow-artifacts/artifacts/1/api/2.0/mlflow/runs/create", "PUT"),
        ("/api/2.0/mlflow-artifacts/mpu/complete/1/x", "POST"),
        ("/ajax-api/2.0/mlflow/upload-artifact", "POST"),
        ("/api/2.0/mlflow/runs/log-metric", "POST"),
        ("/api/2.0/mlflow/runs/search", "POST"),
        ("/api/2.0/mlflow/runs/get", "GET"),
    ],
)
def test_other_requests_pass_unchanged_chunk_by_chunk(path: str, method: str) -> None:
    answer, app = ask(path, [b"\x1f\x8b\x00", b'{"user_id": ', b""], method)
    assert (answer.status, app.body, app.pieces) == (200, b'\x1f\x8b\x00{"user_id": ', 3)
    assert "content-length" not in app.headers


# Requests with fields or tags that could name somebody, but that create or change no record of a
# user, or are not served.
_NAMES_NOBODY = {
    *("GetOrCreateUserQueue", "LogInputs", "LogLoggedModelParamsRequest", "LogMetric", "LogParam"),
    "UpdateReviewQueue",
}
_SUSPECT = re.compile("user|user_id|tags|key|.*_by|creator|author|owner|source_id|.*metadata")


def _suspects(message: Descriptor, depth: int = 0) -> bool:
    return any(
        _SUSPECT.fullmatch(field.name) is not None
        or (
            depth < 3
            and field.message_type is not None
            and _suspects(field.message_type, depth + 1)
        )
        for field in message.fields
    )


def test_every_request_that_can_name_an_owner_has_a_rule() -> None:
    from mlflow.server.handlers import get_endpoints

    checked, missed = set(), set()
    for path, message, methods in get_endpoints(lambda message: message):
        for method in methods:
            if method == "GET" or not isinstance(getattr(message, "DESCRIPTOR", None), Descriptor):
                continue
            path = re.sub("<[^>]*key>", "mlflow.user", path)
            checked.add(message.__name__)
            try:
                require_kept(method, path)
            except ForbiddenError:
                continue
            route = route_of(method, re.sub("<[^>]*>", "x", path))
            if route is not None and route.owner is None and _suspects(message.DESCRIPTOR):
                missed.add(message.__name__)
    assert {"CreateRun", "StartTraceV3", "CreateModelVersion"} <= checked
    assert {name for name in missed if not name.startswith("Search")} <= _NAMES_NOBODY
