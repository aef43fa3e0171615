"""Settings with which the server does not start, before it needs a database."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.server import start
from mlflow_iap_callbacks.server.start_error import StartError

_GIVEN = {"MLFLOW_ARTIFACTS_DESTINATION": "gs://bucket/folder"}


@pytest.mark.parametrize("name", ["PORT", "MLFLOW_WORKERS", "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"])
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "http", " 1", "\u0663", "\u00b2", "9" * 20])
def test_a_number_is_one_that_mlflow_and_the_network_understand(name: str, text: str) -> None:
    with pytest.raises(StartError, match=rf"^{name}=.* is not a number from 1 to \d+\. Correct it"):
        start.check({**_GIVEN, name: text})


def test_a_port_is_at_most_65535() -> None:
    with pytest.raises(StartError, match="PORT='65536' is not a number from 1 to 65535"):
        start.check({**_GIVEN, "PORT": "65536"})
    with pytest.raises(StartError, match="MLFLOW_IAP_AUDIENCE"):
        start.check({**_GIVEN, "PORT": "65535"})


@pytest.mark.parametrize(
    "destination", ["s3://bucket/folder", "GS://bucket", "gs:/bucket", "gs://", "file:///folder"]
)
def test_artifacts_are_stored_in_a_bucket_or_a_folder(destination: str) -> None:
    with pytest.raises(StartError, match=r"Set it to gs://BUCKET/FOLDER, or to the path"):
        start.check({"MLFLOW_ARTIFACTS_DESTINATION": destination})


@pytest.mark.parametrize("destination", ["gs://bucket", "/folder", "folder/a:b"])
def test_a_bucket_and_the_path_of_a_folder_are_destinations(destination: str) -> None:
    with pytest.raises(StartError, match="MLFLOW_IAP_AUDIENCE"):
        start.check({"MLFLOW_ARTIFACTS_DESTINATION": destination})
