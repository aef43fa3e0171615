"""Artifacts through the server into a bucket, also what no request to App Engine can carry."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities.multipart_upload import MultipartUploadPart
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from bucket_emulator import BucketEmulator
from conftest import set_all
from database_server import MariaDB
from deployed_server import behind_iap, run, settings
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server.artifacts import SessionArtifactRepository
from server_database import mariadb, needs_mariadb

__all__ = ["mariadb"]

_32_MB = 32 * 1024 * 1024
_200_MB = 200_000_000


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketEmulator]:
    with BucketEmulator(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@pytest.fixture
def repository(
    bucket: BucketEmulator, monkeypatch: pytest.MonkeyPatch
) -> SessionArtifactRepository:
    set_all(monkeypatch, bucket.environment)
    found = get_artifact_repository(f"gs-sessions://{bucket.bucket}/artifacts")
    assert isinstance(found, SessionArtifactRepository)
    return found


@pytest.fixture
def cloud(
    mariadb: MariaDB,
    bucket: BucketEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[LocalCloud]:
    """As on App Engine: IAP and its 32 MB limit, the gate, MySQL on a socket, a bucket."""
    variables = {
        **settings(mariadb, mariadb.new_database_for("mlflow"), f"gs://{bucket.bucket}/a"),
        **bucket.environment,
    }
    assert run("migrate", variables).exit_code == 0
    with behind_iap(tmp_path, variables) as (cloud, _):
        set_all(monkeypatch, cloud.environment())
        yield cloud


@needs_mariadb
def test_200_mb_go_up_and_down_past_the_32_mb_of_a_request(
    cloud: LocalCloud, bucket: BucketEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MLflow's own client: the plugin for its authentication is all that there is of ours."""
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(_200_MB))
    client = MlflowClient()
    made = client.create_run("0")
    assert made.data.tags["mlflow.user"] == cloud.trainer
    run_id = made.info.run_id
    client.log_artifact(run_id, str(file), "model")
    client.log_text(run_id, "small", "model/notes.txt")
    listed = {item.path: item.file_size for item in client.list_artifacts(run_id, "model")}
    assert listed == {"model/model.bin": _200_MB, "model/notes.txt": 5}
    down = client.download_artifacts(run_id, "model/model.bin", str(tmp_path / "down"))
    assert digest(Path(down)) == digest(file)
    assert not [name for name in bucket.names() if ".uploads" in name]
    assert max(seen.body_bytes for seen in cloud.requests) < _32_MB
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    with pytest.raises(requests.HTTPError, match="413"):
        client.log_artifact(run_id, str(file), "in-one")


def test_more_parts_than_a_bucket_composes_at_once_keep_their_order(
    repository: SessionArtifactRepository, bucket: BucketEmulator, tmp_path: Path
) -> None:
    upload_id, parts = send(repository, [bytes([number]) * 10 for number in range(70)])
    repository.complete_multipart_upload("m.json", upload_id, parts, "1/r")
    down = repository.download_artifacts("1/r/m.json", str(tmp_path))
    assert Path(down).read_bytes() == b"".join(bytes([number]) * 10 for number in range(70))
    assert "artifacts/1/r/m.json" in kept(bucket)
    assert not [name for name in kept(bucket) if ".uploads" in name]


def test_an_upload_that_is_completed_twice_is_there_once(
    repository: SessionArtifactRepository, bucket: BucketEmulator
) -> None:
    upload_id, parts = send(repository, [b"a", b"b"])
    for _ in range(2):
        repository.complete_multipart_upload("twice.txt", upload_id, parts, "2/r")
    assert kept(bucket).count("artifacts/2/r/twice.txt") == 1


def test_an_upload_that_is_not_whole_makes_no_artifact_and_leaves_nothing_when_aborted(
    repository: SessionArtifactRepository, bucket: BucketEmulator
) -> None:
    created = repository.create_multipart_upload("half.txt", 2, "3/r")
    requests.put(created.credentials[0].url, data=b"a", timeout=10).raise_for_status()
    both = [MultipartUploadPart(number, "") for number in (1, 2)]
    with pytest.raises(MlflowException, match=r"Parts of the upload .* are missing"):
        repository.complete_multipart_upload("half.txt", created.upload_id, both, "3/r")
    with pytest.raises(MlflowException, match="Send each once"):
        repository.complete_multipart_upload("half.txt", created.upload_id, both[1:], "3/r")
    assert any(".uploads" in name for name in kept(bucket))
    repository.abort_multipart_upload("half.txt", created.upload_id, "3/r")
    assert not [name for name in kept(bucket) if "half" in name or ".uploads" in name]


@pytest.mark.parametrize("upload_id", ["", "..", "../3/r", "a" * 31, "*" * 32])
def test_an_upload_id_of_nobodys_reaches_no_object(
    repository: SessionArtifactRepository, bucket: BucketEmulator, upload_id: str
) -> None:
    before = kept(bucket)
    with pytest.raises(MlflowException, match="There is no upload"):
        repository.abort_multipart_upload("x", upload_id, "3/r")
    assert kept(bucket) == before


@pytest.mark.parametrize("parts", [0, -1, 10_001])
def test_a_number_of_parts_that_no_file_has_is_refused(
    repository: SessionArtifactRepository, parts: int
) -> None:
    with pytest.raises(MlflowException, match="MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"):
        repository.create_multipart_upload("x", parts, "3/r")


def send(
    repository: SessionArtifactRepository, pieces: list[bytes]
) -> tuple[str, list[MultipartUploadPart]]:
    """As MLflow's client does: each part by one PUT, without credentials."""
    created = repository.create_multipart_upload("file", len(pieces), "x")
    for credential, piece in zip(created.credentials, pieces, strict=True):
        requests.put(credential.url, data=piece, timeout=10).raise_for_status()
    parts = [MultipartUploadPart(each.part_number, "") for each in created.credentials]
    return str(created.upload_id), parts


def kept(bucket: BucketEmulator) -> list[str]:
    return sorted(bucket.names())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
