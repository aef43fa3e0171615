"""Checks that the artifacts' bucket can be used, and explains why if it cannot."""

from __future__ import annotations

from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.retry import DEFAULT_RETRY
from mlflow.store.artifact.gcs_artifact_repo import GCSArtifactRepository
from requests import RequestException

from .start_error import StartError, first_line

# The exceptions that a request to a bucket may raise.
BUCKET_ERRORS = (GoogleAPIError, GoogleAuthError, RequestException)
# Seconds for one request, and for all its retries. google-cloud-storage's own 60 and 120 would
# delay the message that says what is wrong.
_TIMEOUT, _RETRY_TIMEOUT = 10.0, 15.0


def require_bucket(destination: str) -> None:
    """Check that the objects under ``gs://BUCKET/FOLDER`` can be listed.

    Raises:
        StartError: if they cannot.
    """
    name, folder = GCSArtifactRepository.parse_gcs_uri(destination)
    try:
        bucket = GCSArtifactRepository(destination)._get_bucket(name)
        found = bucket.list_blobs(
            prefix=folder,
            max_results=1,
            timeout=_TIMEOUT,
            retry=DEFAULT_RETRY.with_timeout(_RETRY_TIMEOUT),
        )
        next(iter(found), None)
    except (*BUCKET_ERRORS, ValueError) as error:
        raise StartError(explain(name, error)) from None


def explain(bucket: str, error: Exception) -> str:
    """Return what is wrong with a bucket, and what the operator can do."""
    if isinstance(error, NotFound):
        return (
            f"The bucket {bucket} does not exist. Create it (`gcloud storage buckets create "
            f"gs://{bucket}`), or correct MLFLOW_ARTIFACTS_DESTINATION."
        )
    if isinstance(error, Forbidden):
        return (
            f"This server may not use the bucket {bucket}. Grant its service account "
            "roles/storage.objectUser on it."
        )
    return (
        f"The bucket {bucket} cannot be reached: {first_line(error)}. Check the network and this "
        "server's service account."
    )
