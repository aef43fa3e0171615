"""Stores artifacts in a bucket, large ones in parts that clients upload directly to it.

App Engine accepts requests of up to 32 MB, so MLflow's client sends larger files in parts, to URLs
that it gets from the server. MLflow signs these URLs with a private key, which machines in Google
Cloud do not have. Here, each part goes to its own resumable upload session, whose URL needs no
signature. The bucket then composes the parts.

Every process that imports mlflow loads this module, so it imports nothing heavy until needed.
"""

from __future__ import annotations

import hashlib
import logging
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

# The scheme for `mlflow server --artifacts-destination`; MLflow's own `gs` stays as it is.
SCHEME = "gs-sessions"
# A folder beside the runs' artifacts. The bucket's lifecycle rule deletes leftover parts.
PARTS_FOLDER = ".uploads"

_MAX_SOURCES = 32  # Cloud Storage's limit for one compose request
_MAX_PARTS = 10_000  # the same as in Amazon's and Google's multipart uploads
# Seconds to retry requests to the bucket. With google-cloud-storage's own 120, MLflow's client,
# which retries as well, would time out first and not learn what is wrong.
_RETRY_TIMEOUT = 5.0
_THREADS = 8  # for the requests of an upload, which take about 50 ms each
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_UPLOAD_TAG = "mlflow-upload"

_logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
_Method = Callable[Concatenate["SessionArtifactRepository", P], R]


def _explain_bucket_errors(method: _Method[P, R]) -> _Method[P, R]:
    """Tell clients what is wrong with the bucket, unlike MLflow's own repository."""

    @wraps(method)
    def call(self: SessionArtifactRepository, /, *args: P.args, **kwargs: P.kwargs) -> R:
        from .bucket import BUCKET_ERRORS, explain

        try:
            return method(self, *args, **kwargs)
        except BUCKET_ERRORS as error:
            message = explain(self._bucket_name, error)
            raise MlflowException(message, error_code=TEMPORARILY_UNAVAILABLE) from None

    return call


class SessionArtifactRepository(GCSArtifactRepository):
    """MLflow's repository for Cloud Storage, with upload sessions for multipart uploads.

    Args:
        artifact_uri: ``gs-sessions://BUCKET/FOLDER``.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        place = artifact_uri.removeprefix(f"{SCHEME}://")
        super().__init__(f"gs://{place}", *args, **kwargs)
        self._bucket_name, _, self._folder = place.partition("/")

    @_explain_bucket_errors
    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        blob = self._artifact(local_file, artifact_path)
        blob.upload_from_filename(local_file, timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry())

    @_explain_bucket_errors
    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        root, folder = self._blob("").name, self._visible(path or "", "").name
        found = self.client.bucket(self._bucket_name).list_blobs(
            prefix=folder, delimiter="/", timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry()
        )
        files = [
            FileInfo(blob.name.removeprefix(root), False, blob.size)
            for blob in found
            if blob.name != folder
        ]
        folders = [
            FileInfo(name.removeprefix(root).rstrip("/"), True, None)
            for name in found.prefixes
            if name != f"{root}{PARTS_FOLDER}/"
        ]
        return sorted([*files, *folders], key=lambda info: str(info.path))

    @_explain_bucket_errors
    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        from google.api_core.exceptions import NotFound

        blob = self._visible(remote_file_path)
        try:
            blob.download_to_filename(local_path, timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry())
        except NotFound:
            raise _not_found(remote_file_path) from None

    @_explain_bucket_errors
    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        try:
            found: str = super().download_artifacts(  # type: ignore[no-untyped-call]
                artifact_path, dst_path
            )
            return found
        except MlflowException:
            # MLflow raises one error for all files: a 500, which clients would retry for minutes.
            if artifact_path and not self._exists(artifact_path):
                raise _not_found(artifact_path) from None
            raise

    @_explain_bucket_errors
    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._visible(artifact_path or "")
        super().delete_artifacts(artifact_path)  # type: ignore[no-untyped-call]

    @_explain_bucket_errors
    def create_multipart_upload(
        self, local_file: str, num_parts: int = 1, artifact_path: str | None = None
    ) -> CreateMultipartUploadResponse:
        """Return a URL for each part. It is valid for a week, for one PUT of all its bytes."""
        if not 1 <= num_parts <= _MAX_PARTS:
            raise MlflowException(
                f"An upload must have 1 to {_MAX_PARTS} parts, not {num_parts}. Raise "
                "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        upload_id = uuid.uuid4().hex
        folder = self._parts(upload_id, self._artifact(local_file, artifact_path))
        numbers = range(1, num_parts + 1)
        urls = _in_parallel(
            lambda number: self._part(folder, number).create_resumable_upload_session(
                timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry()
            ),
            numbers,
        )
        credentials = [
            MultipartUploadCredential(url=url, part_number=number, headers={})
            for number, url in zip(numbers, urls, strict=True)
        ]
        return CreateMultipartUploadResponse(upload_id=upload_id, credentials=credentials)

    @_explain_bucket_errors
    def complete_multipart_upload(
        self,
        local_file: str,
        upload_id: str,
        parts: Sequence[MultipartUploadPart] | None = None,
        artifact_path: str | None = None,
    ) -> None:
        """Compose the artifact from its parts and delete them. May be called twice."""
        from google.api_core.exceptions import NotFound

        target = self._artifact(local_file, artifact_path)
        folder = self._parts(upload_id, target)
        numbers = sorted(part.part_number for part in parts or ())
        if numbers != list(range(1, len(numbers) + 1)) or not numbers:
            raise MlflowException(
                f"The upload of {target.name} cannot be completed with the parts {numbers[:20]}. "
                "List each part once, starting with 1.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        pieces = [self._part(folder, number) for number in numbers]
        target.content_type = mimetypes.guess_type(target.name)[0] or "application/octet-stream"
        target.metadata = {_UPLOAD_TAG: upload_id}
        try:
            self._compose(folder, pieces, target)
        except NotFound:
            if not self._is_composed_of(target, upload_id):
                raise MlflowException(
                    f"Parts of the upload of {target.name} are missing. Upload the file again.",
                    error_code=RESOURCE_DOES_NOT_EXIST,
                ) from None
        self._delete_parts(folder)

    @_explain_bucket_errors
    def abort_multipart_upload(
        self, local_file: str, upload_id: str, artifact_path: str | None = None
    ) -> None:
        """Delete the parts that have been uploaded."""
        self._delete_parts(self._parts(upload_id, self._artifact(local_file, artifact_path)))

    def _exists(self, path: str) -> bool:
        blob = self._visible(path)
        is_file = blob.exists(timeout=self._GCS_DEFAULT_TIMEOUT, retry=_retry())
        return is_file or bool(self.list_artifacts(path))

    def _compose(self, folder: str, pieces: Sequence[Blob], target: Blob) -> None:
        def compose(target: Blob, pieces: Sequence[Blob]) -> None:
            target.compose(pieces, timeout=self._GCS_DEFAULT_TIMEOUT)

        level = 0
        while len(pieces) > _MAX_SOURCES:
            level += 1
            groups = [
                pieces[first : first + _MAX_SOURCES]
                for first in range(0, len(pieces), _MAX_SOURCES)
            ]
            joined = [self._part(folder, number, level) for number in range(len(groups))]
            _in_parallel(lambda pair: compose(*pair), list(zip(joined, groups, strict=True)))
            pieces = joined
        compose(target, pieces)

    def _is_composed_of(self, target: Blob, upload_id: str) -> bool:
        found = target.bucket.get_blob(target.name)
        return found is not None and (found.metadata or {}).get(_UPLOAD_TAG) == upload_id

    def _delete_parts(self, folder: str) -> None:
        """Delete the parts, as far as the bucket allows: a retention policy may forbid it."""
        from google.api_core.exceptions import NotFound

        from .bucket import BUCKET_ERRORS

        def delete(blob: Blob) -> None:
            try:
                blob.delete(timeout=self._GCS_DEFAULT_TIMEOUT)
            except NotFound:  # deleted by the same request, sent twice
                return

        parts = self._blob(PARTS_FOLDER, folder, "")
        try:
            _in_parallel(delete, list(parts.bucket.list_blobs(prefix=parts.name)))
        except BUCKET_ERRORS as error:
            _logger.warning(
                "mlflow-iap: Parts of a finished upload could not be deleted from %s: %s. The "
                "bucket's lifecycle rule deletes them later.",
                *(parts.name, str(error).partition("\n")[0]),
            )

    def _parts(self, upload_id: str, target: Blob) -> str:
        """Return the folder of an upload's parts, which belong to this target and to no other."""
        if not _UPLOAD_ID.fullmatch(upload_id or ""):
            raise MlflowException(
                f"There is no upload {upload_id!r}. Give the upload_id that its creation returned.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        return f"{upload_id}-{hashlib.sha256(target.name.encode()).hexdigest()}"

    def _part(self, folder: str, number: int, level: int = 0) -> Blob:
        return self._blob(PARTS_FOLDER, folder, f"{level}-{number:05}")

    def _artifact(self, local_file: str, artifact_path: str | None) -> Blob:
        return self._visible(*filter(None, (artifact_path, posixpath.basename(local_file))))

    def _visible(self, *path: str) -> Blob:
        """Return a blob for clients, to whom the parts of uploads do not exist.

        MLflow checks permissions by the path, and that of a part names no experiment.
        """
        if posixpath.normpath(posixpath.join(*path)).lstrip("/").split("/")[0] == PARTS_FOLDER:
            raise _not_found(posixpath.join(*path))
        return self._blob(*path)

    def _blob(self, *path: str) -> Blob:
        return self.client.bucket(self._bucket_name).blob(posixpath.join(self._folder, *path))


def _not_found(path: str) -> MlflowException:
    return MlflowException(f"There is no artifact {path}.", error_code=RESOURCE_DOES_NOT_EXIST)


def _retry() -> Retry:
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry: Retry = DEFAULT_RETRY.with_timeout(_RETRY_TIMEOUT)
    return retry


def _in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))
