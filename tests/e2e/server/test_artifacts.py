"""The server's artifacts in a bucket, whole and in parts, and the errors without a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from google.api_core.exceptions import Forbidden
from google.cloud.storage import Blob
from mlflow.entities.multipart_upload import MultipartUploadPart
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from bucket_emulator import BucketEmulator
from mlflow_iap_callbacks.server.artifacts import SessionArtifactRepository
from variables import set_all


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


def test_files_and_folders_are_listed_and_downloaded_as_logged(
    repository: SessionArtifactRepository, bucket: BucketEmulator, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("content")
    for folder in (None, "f", "f/g"):
        repository.log_artifact(str(tmp_path / "a.txt"), f"9/{folder}" if folder else "9")
    listed = [(item.path, item.is_dir, item.file_size) for item in repository.list_artifacts("9")]
    assert listed == [("9/a.txt", False, 7), ("9/f", True, None)]
    assert repository.list_artifacts("9/a.txt") == []
    assert "9" in [item.path for item in repository.list_artifacts()]
    (tmp_path / "down").mkdir()
    down = Path(repository.download_artifacts("9/f", str(tmp_path / "down")))
    assert sorted(str(path.relative_to(down)) for path in down.rglob("*.txt")) == [
        "a.txt",
        "g/a.txt",
    ]
    repository.delete_artifacts("9")
    assert not [name for name in bucket.names() if name.startswith("artifacts/9/")]


def test_a_missing_artifact_is_a_404_that_names_it(
    repository: SessionArtifactRepository, tmp_path: Path
) -> None:
    with pytest.raises(MlflowException, match=r"There is no artifact 3/r/none\.txt") as raised:
        repository.download_artifacts("3/r/none.txt", str(tmp_path))
    assert raised.value.get_http_status_code() == 404, "clients must not retry it"


def test_a_missing_bucket_is_a_503_that_names_it(
    bucket: BucketEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_all(monkeypatch, bucket.environment)
    found = get_artifact_repository("gs-sessions://no-such-bucket/artifacts")
    (tmp_path / "a.txt").touch()
    with pytest.raises(MlflowException, match="The bucket no-such-bucket does not exist") as raised:
        found.log_artifact(str(tmp_path / "a.txt"))
    assert raised.value.get_http_status_code() == 503, "clients must retry it"


def test_a_bucket_that_forbids_deleting_fails_no_upload(
    repository: SessionArtifactRepository,
    bucket: BucketEmulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Forbidden("Object is subject to bucket's retention policy.")

    upload_id, parts = send(repository, [b"a" * 10, b"b" * 10], "kept.bin", "1/r")
    with monkeypatch.context() as forbidding:
        forbidding.setattr(Blob, "delete", refuse)
        for _ in range(2):  # a client whose response was lost completes it again
            repository.complete_multipart_upload("kept.bin", upload_id, parts, "1/r")
        assert bucket.sizes()["artifacts/1/r/kept.bin"] == 20
        repository.abort_multipart_upload("kept.bin", upload_id, "1/r")
    assert "retention policy" in caplog.text
    assert "lifecycle rule deletes them later" in caplog.text
    repository.abort_multipart_upload("kept.bin", upload_id, "1/r")
    assert not [name for name in kept(bucket) if ".uploads" in name]


def test_more_parts_than_a_bucket_composes_at_once_keep_their_order(
    repository: SessionArtifactRepository, bucket: BucketEmulator, tmp_path: Path
) -> None:
    pieces = [bytes([number]) * 10 for number in range(70)]
    upload_id, parts = send(repository, pieces, "m.json", "1/r")
    repository.complete_multipart_upload("m.json", upload_id, parts, "1/r")
    down = repository.download_artifacts("1/r/m.json", str(tmp_path))
    assert Path(down).read_bytes() == b"".join(bytes([number]) * 10 for number in range(70))
    assert "artifacts/1/r/m.json" in kept(bucket)
    assert not [name for name in kept(bucket) if ".uploads" in name]


def test_an_upload_that_is_completed_twice_makes_one_artifact(
    repository: SessionArtifactRepository, bucket: BucketEmulator
) -> None:
    upload_id, parts = send(repository, [b"a", b"b"], "twice.txt", "2/r")
    for _ in range(2):
        repository.complete_multipart_upload("twice.txt", upload_id, parts, "2/r")
    assert kept(bucket).count("artifacts/2/r/twice.txt") == 1


def test_an_incomplete_upload_makes_no_artifact_and_leaves_nothing_when_aborted(
    repository: SessionArtifactRepository, bucket: BucketEmulator
) -> None:
    created = repository.create_multipart_upload("half.txt", 2, "3/r")
    assert created.upload_id is not None
    requests.put(created.credentials[0].url, data=b"a", timeout=10).raise_for_status()
    both = [MultipartUploadPart(number, "") for number in (1, 2)]
    with pytest.raises(MlflowException, match=r"Parts of the upload .* are missing"):
        repository.complete_multipart_upload("half.txt", created.upload_id, both, "3/r")
    with pytest.raises(MlflowException, match="List each part once"):
        repository.complete_multipart_upload("half.txt", created.upload_id, both[1:], "3/r")
    assert any(".uploads" in name for name in kept(bucket))
    repository.abort_multipart_upload("half.txt", created.upload_id, "3/r")
    assert not [name for name in kept(bucket) if "half" in name or ".uploads" in name]


@pytest.mark.parametrize("upload_id", ["", "..", "../3/r", "a" * 31, "*" * 32])
def test_an_unknown_upload_id_reaches_no_object(
    repository: SessionArtifactRepository, bucket: BucketEmulator, upload_id: str
) -> None:
    before = kept(bucket)
    with pytest.raises(MlflowException, match="There is no upload"):
        repository.abort_multipart_upload("x", upload_id, "3/r")
    assert kept(bucket) == before


@pytest.mark.parametrize("parts", [0, -1, 10_001])
def test_an_impossible_number_of_parts_is_rejected(
    repository: SessionArtifactRepository, parts: int
) -> None:
    with pytest.raises(MlflowException, match="MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"):
        repository.create_multipart_upload("x", parts, "3/r")


@pytest.mark.parametrize(("name", "folder"), [("secret.txt", "5/r"), ("other.txt", "4/r")])
def test_the_parts_of_an_upload_become_no_other_artifact(
    repository: SessionArtifactRepository, bucket: BucketEmulator, name: str, folder: str
) -> None:
    upload_id, parts = send(repository, [b"a", b"b"], "secret.txt", "4/r")
    with pytest.raises(MlflowException, match=r"Parts of the upload .* are missing"):
        repository.complete_multipart_upload(name, upload_id, parts, folder)
    repository.abort_multipart_upload(name, upload_id, folder)
    repository.complete_multipart_upload("secret.txt", upload_id, parts, "4/r")
    assert f"artifacts/{folder}/{name}" not in kept(bucket)
    assert "artifacts/4/r/secret.txt" in kept(bucket)


@pytest.mark.parametrize("prefix", ["", "./", "x/../", "/", ".//"])
def test_clients_do_not_see_the_parts_of_uploads(
    repository: SessionArtifactRepository, bucket: BucketEmulator, tmp_path: Path, prefix: str
) -> None:
    upload_id, parts = send(repository, [b"a"], "secret.txt", "4/r")
    (part,) = (name for name in kept(bucket) if upload_id in name)
    path = prefix + part.removeprefix("artifacts/")
    (tmp_path / "a.txt").write_text("another's")
    for use in (
        lambda: repository.list_artifacts(path.rpartition("/")[0]),
        lambda: repository.download_artifacts(path, str(tmp_path)),
        lambda: repository.log_artifact(str(tmp_path / "a.txt"), path),
        lambda: repository.delete_artifacts(path),
        lambda: repository.create_multipart_upload("x", 1, path),
    ):
        with pytest.raises(MlflowException, match=r"There is no artifact .*\.uploads"):
            use()
    assert [info.path for info in repository.list_artifacts() if "uploads" in info.path] == []
    repository.complete_multipart_upload("secret.txt", upload_id, parts, "4/r")


def send(
    repository: SessionArtifactRepository, pieces: list[bytes], name: str, folder: str
) -> tuple[str, list[MultipartUploadPart]]:
    """Upload like MLflow's client: each part in one PUT, without credentials."""
    created = repository.create_multipart_upload(name, len(pieces), folder)
    for credential, piece in zip(created.credentials, pieces, strict=True):
        requests.put(credential.url, data=piece, timeout=10).raise_for_status()
    parts = [MultipartUploadPart(each.part_number, "") for each in created.credentials]
    return str(created.upload_id), parts


def kept(bucket: BucketEmulator) -> list[str]:
    return sorted(bucket.names())
