"""The host names that the server responds to."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.server.hosts import hosts_of
from mlflow_iap_callbacks.server.start_error import StartError

_APP_ENGINE = {"GOOGLE_CLOUD_PROJECT": "p", "GAE_SERVICE": "mlflow", "GAE_VERSION": "v1"}


@pytest.mark.parametrize(
    "host", ["mlflow.example.com", "localhost:8080", "a-b.c_d.example", "10.0.0.1:*", "[::1]:8080"]
)
def test_a_name_or_an_address_is_a_host(host: str) -> None:
    assert hosts_of({"MLFLOW_SERVER_HOSTS": f"{host}, ,other"}) == [host, "other"]


@pytest.mark.parametrize(
    "host",
    [
        *("https://mlflow.example.com", "mlflow.example.com/", "mlflow.example.com/path"),
        *("MLflow.example.com", "*", "*.example.com", "mlflow.example.com:https"),
        *("a b", "user@mlflow.example.com", ".example.com", "mlflow.example.com.", "::1"),
        *(
            "mlflow.example.com:\u0663",
            "mlflow\nexample.com",
            "mlflow..example.com",
            "-mlflow.example.com",
        ),
    ],
)
def test_anything_but_a_host_name_is_an_error(host: str) -> None:
    with pytest.raises(StartError, match="not the name of a host in lower case"):
        hosts_of({"MLFLOW_SERVER_HOSTS": host})


def test_app_engine_gives_a_service_and_its_version_two_names_each() -> None:
    assert hosts_of({**_APP_ENGINE, "MLFLOW_SERVER_REGION_ID": "uc"}) == [
        "mlflow-dot-p.uc.r.appspot.com",
        "mlflow-dot-p.appspot.com",
        "v1-dot-mlflow-dot-p.uc.r.appspot.com",
        "v1-dot-mlflow-dot-p.appspot.com",
    ]


def test_a_cloud_run_service_has_the_name_in_its_audience_and_the_one_that_is_set() -> None:
    audience = "/projects/123456789012/locations/europe-west1/services/mlflow"
    known = "mlflow-123456789012.europe-west1.run.app"
    other = "mlflow-k2x7qv3z4a-ew.a.run.app"
    assert hosts_of({"MLFLOW_IAP_AUDIENCE": audience}) == [known]
    both = {"MLFLOW_IAP_AUDIENCE": audience, "MLFLOW_SERVER_HOSTS": f"{other},{known}"}
    assert hosts_of(both) == [other, known]


@pytest.mark.parametrize(
    "audience", ["/projects/123/apps/my-project", "/projects/123/global/backendServices/456"]
)
def test_the_audience_of_another_platform_gives_no_name(audience: str) -> None:
    with pytest.raises(StartError, match="is not that of a Cloud Run service"):
        hosts_of({"MLFLOW_IAP_AUDIENCE": audience})


def test_a_region_in_place_of_its_abbreviation_is_an_error() -> None:
    with pytest.raises(StartError, match="such as uc for us-central1"):
        hosts_of({**_APP_ENGINE, "MLFLOW_SERVER_REGION_ID": "us-central1"})


def test_a_server_without_a_name_is_an_error() -> None:
    with pytest.raises(StartError, match="The host names of this server are unknown"):
        hosts_of({})
