"""The artifacts' bucket: whether it can be used, and what is the matter where it cannot."""

from __future__ import annotations

from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.retry import DEFAULT_RETRY
from mlflow.store.artifact.gcs_artifact_repo import GCSArtifactRepository
from requests import RequestException

from .start_error import StartError, first_line

# What the way to a bucket may end with.
BUCKET_ERRORS = (GoogleAPIError, GoogleAuthError, RequestException)
# Seconds; google-cloud-storage's own are 60 and 120.
_TIMEOUT, _DEADLINE = 10.0, 15.0


def require_bucket(destination: str) -> None:
    """Return where the objects under ``gs://BUCKET/FOLDER`` can be listed.

    Raises:
        StartError: they cannot.
    """
    name, folder = GCSArtifactRepository.parse_gcs_uri(destination)
    try:
        bucket = GCSArtifactRepository(destination)._get_bucket(name)
        found = bucket.list_blobs(
            prefix=folder,
            max_results=1,
            timeout=_TIMEOUT,
            retry=DEFAULT_RETRY.with_timeout(_DEADLINE),
        )
        next(iter(found), None)
    except (*BUCKET_ERRORS, ValueError) as error:
        raise StartError(trouble_of(name, error)) from None


def trouble_of(bucket: str, error: Exception) -> str:
    """What is the matter with a bucket, and what to do, in words for who runs the server."""
    if isinstance(error, NotFound):
        return (
            f"The bucket {bucket} does not exist. Create it (`gcloud storage buckets create "
            f"gs://{bucket}`), or correct MLFLOW_ARTIFACTS_DESTINATION."
        )
    if isinstance(error, Forbidden):
        return (
            f"The bucket {bucket} may not be used. Give the service account that this server runs "
            "as roles/storage.objectUser on it."
        )
    return (
        f"The bucket {bucket} cannot be reached: {first_line(error)}. Check the network, and the "
        "service account that this server runs as."
    )
