"""Artifacts in a bucket, large ones straight from the client to it: MLflow's seam for storage.

App Engine takes no request above 32 MB, so MLflow's client sends larger files in parts to URLs that
the server names. MLflow signs such URLs, which takes a private key; a machine in Google Cloud has
none. Here each part goes to a resumable upload session of its own, whose URL is its own permission,
and the bucket composes the parts.

MLflow loads this module in every process that imports it, so nothing heavy is imported before it is
needed.
"""

from __future__ import annotations

import mimetypes
import posixpath
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from mlflow.entities import FileInfo
from mlflow.entities.multipart_upload import (
    CreateMultipartUploadResponse,
    MultipartUploadCredential,
    MultipartUploadPart,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.gcs_artifact_repo import GCSArtifactRepository

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud.storage import Blob

# A scheme of our own for `mlflow server --artifacts-destination`: MLflow's `gs` stays as it is.
SCHEME = "gs-sessions"
# Beside the artifacts, not among those of a run. The bucket's lifecycle removes what stays there.
PARTS_FOLDER = ".uploads"

_MOST_SOURCES = 32  # that Cloud Storage composes at once
_MOST_PARTS = 10_000  # as Amazon's and Google's own multipart uploads
# Seconds for which a bucket is tried again; google-cloud-storage's own are 120, and MLflow's client
# would have gone by then, with no word of what is the matter. It asks again itself.
_PATIENCE = 5.0
_THREADS = 8  # of one upload's requests to the bucket, each some 50 ms
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_UPLOAD_TAG = "mlflow-upload"

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
_Method = Callable[Concatenate["SessionArtifactRepository", P], R]


def _with_words(method: _Method[P, R]) -> _Method[P, R]:
    """Let a client know what is the matter with the bucket; MLflow's has no words for it."""

    @wraps(method)
    def call(self: SessionArtifactRepository, /, *args: P.args, **kwargs: P.kwargs) -> R:
        from .bucket import BUCKET_ERRORS, trouble_of

        try:
            return method(self, *args, **kwargs)
        except BUCKET_ERRORS as error:
            trouble = trouble_of(self._bucket_name, error)
            raise MlflowException(trouble, error_code=TEMPORARILY_UNAVAILABLE) from None

    return call


class SessionArtifactRepository(GCSArtifactRepository):
    """MLflow's repository for Cloud Storage, its multipart uploads by sessions.

    Args:
        artifact_uri: ``gs-sessions://BUCKET/FOLDER``.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        place = artifact_uri.removeprefix(f"{SCHEME}://")
        super().__init__(f"gs://{place}", *args, **kwargs)
        self._bucket_name, _, self._folder = place.partition("/")

    @_with_words
    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        blob = self._blob(*filter(None, (artifact_path, posixpath.basename(local_file))))
        blob.upload_from_filename(local_file, timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry())

    @_with_words
    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        root, folder = self._blob("").name, self._blob(path or "", "").name
        found = self.client.bucket(self._bucket_name).list_blobs(
            prefix=folder, delimiter="/", timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry()
        )
        files = [
            FileInfo(blob.name.removeprefix(root), False, blob.size)
            for blob in found
            if blob.name != folder
        ]
        folders = [
            FileInfo(name.removeprefix(root).rstrip("/"), True, None) for name in found.prefixes
        ]
        return sorted([*files, *folders], key=lambda info: str(info.path))

    @_with_words
    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        from google.api_core.exceptions import NotFound

        blob = self._blob(remote_file_path)
        try:
            blob.download_to_filename(local_path, timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry())
        except NotFound:
            raise _there_is_no(remote_file_path) from None

    @_with_words
    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        try:
            found: str = super().download_artifacts(  # type: ignore[no-untyped-call]
                artifact_path, dst_path
            )
            return found
        except MlflowException:
            # MLflow makes one error of all files', answered as 500: to be tried again for minutes.
            if artifact_path and not self._exists(artifact_path):
                raise _there_is_no(artifact_path) from None
            raise

    delete_artifacts = _with_words(GCSArtifactRepository.delete_artifacts)

    @_with_words
    def create_multipart_upload(
        self, local_file: str, num_parts: int = 1, artifact_path: str | None = None
    ) -> CreateMultipartUploadResponse:
        """A URL for each part, good for a week, to which its bytes are PUT in one request."""
        if not 1 <= num_parts <= _MOST_PARTS:
            raise MlflowException(
                f"An upload in {num_parts} parts is not possible. Give 1 to {_MOST_PARTS}: raise "
                "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        upload_id = uuid.uuid4().hex
        numbers = range(1, num_parts + 1)
        urls = _all(
            lambda number: self._part(upload_id, number).create_resumable_upload_session(
                timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry()
            ),
            numbers,
        )
        credentials = [
            MultipartUploadCredential(url=url, part_number=number, headers={})
            for number, url in zip(numbers, urls, strict=True)
        ]
        return CreateMultipartUploadResponse(upload_id=upload_id, credentials=credentials)

    @_with_words
    def complete_multipart_upload(
        self,
        local_file: str,
        upload_id: str,
        parts: Sequence[MultipartUploadPart] | None = None,
        artifact_path: str | None = None,
    ) -> None:
        """Make the artifact of its parts and delete them; done twice, it is done once."""
        from google.api_core.exceptions import NotFound

        target = self._blob(*filter(None, (artifact_path, posixpath.basename(local_file))))
        numbers = sorted(part.part_number for part in parts or ())
        if numbers != list(range(1, len(numbers) + 1)) or not numbers:
            raise MlflowException(
                f"The upload of {target.name} ended with the parts {numbers[:20]}. Send each once, "
                "from 1.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        pieces = [self._part(upload_id, number) for number in numbers]
        target.content_type = mimetypes.guess_type(target.name)[0] or "application/octet-stream"
        target.metadata = {_UPLOAD_TAG: upload_id}
        try:
            self._compose(upload_id, pieces, target)
        except NotFound:
            if not self._is_made_of(target, upload_id):
                raise MlflowException(
                    f"Parts of the upload of {target.name} are missing. Send the file again.",
                    error_code=RESOURCE_DOES_NOT_EXIST,
                ) from None
        self._delete_parts(upload_id)

    @_with_words
    def abort_multipart_upload(
        self, local_file: str, upload_id: str, artifact_path: str | None = None
    ) -> None:
        """Delete the parts that have arrived."""
        self._delete_parts(upload_id)

    def _exists(self, path: str) -> bool:
        blob = self._blob(path)
        is_file = blob.exists(timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry())
        return is_file or bool(self.list_artifacts(path))

    def _compose(self, upload_id: str, pieces: Sequence[Blob], target: Blob) -> None:
        level = 0
        while len(pieces) > _MOST_SOURCES:
            level += 1
            groups = [
                pieces[first : first + _MOST_SOURCES]
                for first in range(0, len(pieces), _MOST_SOURCES)
            ]
            joined = [self._part(upload_id, number, level) for number in range(len(groups))]
            _all(lambda pair: self._join(*pair), list(zip(joined, groups, strict=True)))
            pieces = joined
        self._join(target, pieces)

    def _join(self, target: Blob, pieces: Sequence[Blob]) -> None:
        target.compose(pieces, timeout=self._GCS_DEFAULT_TIMEOUT)

    def _is_made_of(self, target: Blob, upload_id: str) -> bool:
        found = target.bucket.get_blob(target.name)
        return found is not None and (found.metadata or {}).get(_UPLOAD_TAG) == upload_id

    def _delete_parts(self, upload_id: str) -> None:
        from google.api_core.exceptions import NotFound

        def delete(blob: Blob) -> None:
            try:
                blob.delete(timeout=self._GCS_DEFAULT_TIMEOUT)
            except NotFound:  # by the same call, sent twice
                return

        folder = self._part(upload_id, 0)
        prefix = f"{posixpath.dirname(folder.name)}/"
        _all(delete, list(folder.bucket.list_blobs(prefix=prefix)))

    def _part(self, upload_id: str, number: int, level: int = 0) -> Blob:
        if not _UPLOAD_ID.fullmatch(upload_id or ""):
            raise MlflowException(
                f"There is no upload {upload_id!r}. Give the upload_id of its creation.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        return self._blob(PARTS_FOLDER, upload_id, f"{level}-{number:05}")

    def _blob(self, *path: str) -> Blob:
        return self.client.bucket(self._bucket_name).blob(posixpath.join(self._folder, *path))


def _there_is_no(path: str) -> MlflowException:
    return MlflowException(f"There is no artifact {path}.", error_code=RESOURCE_DOES_NOT_EXIST)


def _retry() -> Retry:
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry: Retry = DEFAULT_RETRY.with_timeout(_PATIENCE)
    return retry


def _all(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))
