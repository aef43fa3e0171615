"""Whether the artifacts' bucket can be used, before a server says that it is ready."""

from __future__ import annotations

from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.retry import DEFAULT_RETRY
from mlflow.store.artifact.gcs_artifact_repo import GCSArtifactRepository
from requests import RequestException

from mlflow_iap_callbacks.server.start_error import StartError

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
    except NotFound:
        raise StartError(
            f"The bucket {name} does not exist. Create it (`gcloud storage buckets create "
            f"gs://{name}`), or correct MLFLOW_ARTIFACTS_DESTINATION."
        ) from None
    except Forbidden:
        raise StartError(
            f"The bucket {name} may not be used. Give the service account that this server runs as "
            "roles/storage.objectUser on it."
        ) from None
    except (GoogleAPIError, GoogleAuthError, RequestException, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise StartError(
            f"The bucket {name} cannot be reached: {reason}. Check the network, and the service "
            "account that this server runs as."
        ) from None
