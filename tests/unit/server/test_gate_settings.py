"""The gate's settings from environment variables, and which values are rejected."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.server.gate_settings import GOOGLE_KEYS_URL, GateSettings
from mlflow_iap_callbacks.server.start_error import StartError

AUDIENCE = {"MLFLOW_IAP_AUDIENCE": "/projects/123/apps/my-project"}


def test_only_the_audience_is_required() -> None:
    assert GateSettings.from_environment(AUDIENCE) == GateSettings(
        "/projects/123/apps/my-project", GOOGLE_KEYS_URL, False, ()
    )


@pytest.mark.parametrize(
    "audience",
    [
        "/projects/123/apps/example.com:my-project",
        "/projects/123/locations/europe-west1/services/mlflow",
        "/projects/123/global/backendServices/456",
    ],
)
def test_accepts_the_audience_of_app_engine_cloud_run_and_a_load_balancer(audience: str) -> None:
    assert GateSettings.from_environment({"MLFLOW_IAP_AUDIENCE": audience}).audience == audience


@pytest.mark.parametrize(
    "audience",
    ["", "my-project", "/projects/my-project/apps/my-project", "/projects/\uff11/apps/my-project"],
)
def test_rejects_an_audience_that_no_assertion_has(audience: str) -> None:
    with pytest.raises(StartError, match="MLFLOW_IAP_AUDIENCE is"):
        GateSettings.from_environment({"MLFLOW_IAP_AUDIENCE": audience})


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/keys", "http://[::1]/keys", "http://localhost/keys"]
)
def test_accepts_http_for_keys_on_this_machine(url: str) -> None:
    environment = {**AUDIENCE, "MLFLOW_IAP_KEYS_URL": url}
    assert GateSettings.from_environment(environment).keys_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://www.gstatic.com/iap/verify/public_key",
        "http://127.0.0.1.example.com/keys",
        "http://10.0.0.1/keys",
        "file:///etc/passwd",
        "https:///keys",
        "keys",
        "http://[::1",
    ],
)
def test_rejects_urls_where_others_could_replace_the_keys(url: str) -> None:
    with pytest.raises(StartError, match="MLFLOW_IAP_KEYS_URL"):
        GateSettings.from_environment({**AUDIENCE, "MLFLOW_IAP_KEYS_URL": url})


def test_emails_of_admins_become_lower_case() -> None:
    settings = GateSettings.from_environment(
        {
            **AUDIENCE,
            "MLFLOW_IAP_PERMISSIONS": "true",
            "MLFLOW_IAP_ADMINS": "Ada@Example.com, bob@example.com,",
        }
    )
    assert settings.has_permissions
    assert settings.admins == ("ada@example.com", "bob@example.com")


def test_rejects_permissions_that_nobody_could_grant() -> None:
    with pytest.raises(StartError, match="MLFLOW_IAP_ADMINS"):
        GateSettings.from_environment({**AUDIENCE, "MLFLOW_IAP_PERMISSIONS": "true"})


def test_rejects_a_boolean_setting_that_is_neither_true_nor_false() -> None:
    with pytest.raises(StartError, match="MLFLOW_IAP_PERMISSIONS is 'perhaps'"):
        GateSettings.from_environment({**AUDIENCE, "MLFLOW_IAP_PERMISSIONS": "perhaps"})


def test_rejects_a_default_permission_that_mlflow_does_not_know() -> None:
    with pytest.raises(StartError, match=r"DEFAULT_PERMISSION is 'read'\. Set it to one"):
        GateSettings.from_environment({**AUDIENCE, "MLFLOW_IAP_DEFAULT_PERMISSION": "read"})


def test_rejects_settings_for_users_with_passwords() -> None:
    given = {**AUDIENCE, "MLFLOW_IAP_PERMISSIONS": "true", "MLFLOW_IAP_ADMINS": "ada@example.com"}
    with pytest.raises(StartError, match="MLFLOW_AUTH_CONFIG_PATH is set"):
        GateSettings.from_environment({**given, "MLFLOW_AUTH_CONFIG_PATH": "auth.ini"})


@pytest.mark.parametrize(
    "admins",
    [
        *("ada", "ada@example", "*", "group:data@example.com", "user:ada@example.com"),
        *("ada@example.com;bob@example.com", "ada@example.com bob@example.com", "@example.com"),
    ],
)
def test_rejects_admins_that_are_not_emails(admins: str) -> None:
    given = {**AUDIENCE, "MLFLOW_IAP_PERMISSIONS": "true", "MLFLOW_IAP_ADMINS": admins}
    with pytest.raises(StartError, match="which is not the e-mail of a user"):
        GateSettings.from_environment(given)
