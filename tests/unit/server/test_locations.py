"""Which locations of artifacts a request may name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from asgi import Answer, Recorder, call
from mlflow_iap_callbacks.server.body_middleware import BodyMiddleware
from mlflow_iap_callbacks.server.gate import visitor
from mlflow_iap_callbacks.server.gate_settings import GateSettings
from mlflow_iap_callbacks.server.start_error import StartError

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

_MLFLOW = "/api/2.0/mlflow"
_SECRET = "gs://team-bucket/artifacts/1"


def _answer(
    path: str, body: Any, method: str = "POST", *, locations: tuple[str, ...] = ()
) -> Answer:
    app = Recorder()
    middleware = BodyMiddleware(app, locations=locations)

    async def ask() -> Answer:
        visitor.set("eve@example.com")
        return await call(middleware, path, method, {}, json.dumps(body).encode())

    answer = asyncio.run(ask())
    assert app.calls == (answer.status == 200)
    return answer


def _status(path: str, body: Any, method: str = "POST", *, locations: tuple[str, ...] = ()) -> int:
    return _answer(path, body, method, locations=locations).status


def _source(location: Any, **settings: Any) -> int:
    return _status(
        f"{_MLFLOW}/model-versions/create", {"name": "m", "source": location}, **settings
    )


@pytest.mark.parametrize(
    "location",
    [
        *(None, "", "mlflow-artifacts:/1/abc/artifacts/model", "runs:/abc/model", "models:/m/1"),
        *("models:/m-0123", "mlflow-artifacts:/1/abc/artifacts/größe 1/model.v2"),
        "mlflow-artifacts:/1/abc/artifacts/[a]",
    ],
)
def test_artifacts_of_this_server_are_allowed(location: str | None) -> None:
    assert _source(location) == 200


@pytest.mark.parametrize(
    "location",
    [
        *(_SECRET, "GS://team-bucket", "gs-sessions://team-bucket/artifacts/1", "s3://b/x"),
        *("file:///etc", "file:/etc", "/etc/passwd", "etc", "./x", "http://169.254.169.254/"),
        *("mlflow-artifacts://evil.example/x", "mlflow-artifacts:///x", "mlflow-artifacts:x"),
        *("runs:///etc", "models://evil@x/m", "MLFLOW-ARTIFACTS:/1", " mlflow-artifacts:/1"),
        *(
            "mlflow-artifacts:/1/../2/secret",
            "mlflow-artifacts:/1/%2e%2e/2",
            "runs:/a/%252e%252e/b",
        ),
        *("mlflow-artifacts:/1/..", "runs:/a\\..\\b", "mlflow-artifacts:/1?x=gs://b", "runs:/a#b"),
        *("mlflow-artifacts:/1\n", "runs:/a\0", 5, ["runs:/a"], {"a": "b"}),
        *("runs:/" + "a" * 2000, f"runs:/%{'25' * 1_000_000}41"),
        *("gs://[", "gs://team-bucket]/a", "gs://team-\u2100"),
    ],
)
def test_everything_else_is_rejected(location: Any) -> None:
    assert _source(location) == 403


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("gs://other/a", "'gs://other/a'"),
        ("runs:/a\n\0", r"'runs:/a\n\x00'"),
        (5, "5"),
        ("gs://" + "a" * 100_000, "'gs://" + "a" * 194 + "..."),
    ],
)
def test_the_error_names_the_location_and_what_to_use(location: Any, shown: str) -> None:
    path = f"{_MLFLOW}/experiments/create"
    message = json.loads(_answer(path, {"artifact_location": location}).body)["message"]
    assert message == (
        f"The artifact location {shown} is not allowed: omit it, or use one that you can access "
        "and that begins with mlflow-artifacts:/, runs:/ or models:/. An administrator can allow "
        "others with MLFLOW_IAP_LOCATIONS."
    )


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("experiments/create", "POST", {"artifact_location": _SECRET}),
        ("experiments/create", "POST", {"artifactLocation": _SECRET}),
        ("experiments/create", "POST", {"artifact_location": "", "artifactLocation": _SECRET}),
        ("/experiments//create/", "POST", {"artifact_location": _SECRET}),
        ("workspaces", "POST", {"default_artifact_root": _SECRET}),
        ("workspaces/w", "PATCH", {"trace_archival_config": {"location": _SECRET}}),
    ],
)
def test_each_request_that_names_a_location_is_checked(
    path: str, method: str, body: dict[str, Any]
) -> None:
    assert _status(f"{_MLFLOW}/{path}", {"name": "x", **body}, method) == 403


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("experiments/create", "POST", {"name": "x"}),
        ("traces/tr-1/tags", "PATCH", {"key": "note", "value": _SECRET}),
        ("traces", "POST", {"trace": {"trace_info": {"tags": {"note": _SECRET}}}}),
        ("runs/set-tag", "POST", {"key": "mlflow.artifactLocation", "value": _SECRET}),
    ],
)
def test_a_text_that_mlflow_does_not_read_as_a_location_is_passed_on(
    path: str, method: str, body: dict[str, Any]
) -> None:
    assert _status(f"{_MLFLOW}/{path}", body, method) == 200


@pytest.mark.parametrize("source", ["dummy-source", "prompt-template"])
def test_the_source_of_a_prompt_is_not_the_location_of_anything_else(source: str) -> None:
    assert _source(source) == 200
    assert _status(f"{_MLFLOW}/experiments/create", {"artifact_location": source}) == 403


def test_an_administrator_can_allow_other_locations() -> None:
    allowed = {"locations": ("gs://team-bucket/shared",)}
    assert _source("gs://team-bucket/shared/model", **allowed) == 200
    for location in (
        *("gs://team-bucket", "gs://team-bucket/sharedness", "gs://team-bucket/shared/../x"),
        "gs://other/shared",
    ):
        assert _source(location, **allowed) == 403


_NEVER = ("gs://a/b?c", "gs://a#b", "gs://a/../b", "gs://u@a", "gs://[")  # is_plain refuses them


def test_only_buckets_can_be_allowed() -> None:
    given = {"MLFLOW_IAP_AUDIENCE": "/projects/1/apps/p"}
    settings = GateSettings.from_environment({**given, "MLFLOW_IAP_LOCATIONS": "gs://a, s3://b/c,"})
    assert settings.locations == ("gs://a", "s3://b/c")
    for uri in ("file:///", "gs:", "gs://", "/etc", "bucket", "http://x/y", "gs://a b", *_NEVER):
        with pytest.raises(StartError, match="MLFLOW_IAP_LOCATIONS contains"):
            GateSettings.from_environment({**given, "MLFLOW_IAP_LOCATIONS": uri})


# Fields of requests whose names suggest a location, and what they are instead.
_ELSEWHERE = {
    *("ListArtifacts.path", "CreatePresignedUploadUrl.path", "CreatePresignedDownloadUrl.path"),
    *("ListLoggedModelArtifacts.artifact_directory_path", "CreateLoggedModel.source_run_id"),
    *("CreateMultipartUpload.path", "CompleteMultipartUpload.path", "AbortMultipartUpload.path"),
    *("CreateIssue.source_run_id", "CreateIssue.root_causes"),
    "SearchTracesV3.locations",  # experiments
    # Served, but only described: MLflow opens no source of a data set.
    *("CreateDataset.source", "CreateDataset.source_type"),
}
_CHECKED = {
    *("CreateWebhook.url", "UpdateWebhook.url"),  # by webhooks.py
    *("CreateExperiment.artifact_location", "CreateModelVersion.source"),
    *("CreateWorkspace.default_artifact_root", "UpdateWorkspace.default_artifact_root"),
}
_WORDS = ("location", "source", "uri", "url", "root", "path", "bucket")


def test_each_field_that_may_name_a_location_has_a_rule_or_a_reason_for_none() -> None:
    from mlflow.server.handlers import get_endpoints

    from mlflow_iap_callbacks.server.routes import route_of

    def suspects(descriptor: Descriptor) -> Iterator[str]:
        for field in descriptor.fields:
            if any(word in field.name for word in _WORDS):
                yield f"{descriptor.name}.{field.name}"

    found: set[str] = set()
    for path, message, methods in get_endpoints(lambda message: message):
        descriptor = getattr(message, "DESCRIPTOR", None)
        is_served = any(route_of(method, path) for method in methods if method != "GET")
        if isinstance(descriptor, Descriptor) and is_served:
            found |= set(suspects(descriptor))
    assert found - _ELSEWHERE - _CHECKED == set(), "decide on the new ones"
    assert {"CreateExperiment.artifact_location", "CreateModelVersion.source"} <= found
