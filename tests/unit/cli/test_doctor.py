"""The steps of ``mlflow-iap doctor``: what each one finds, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bare_server import BareServer
from mlflow_iap_callbacks import IAPConfigurationError, IAPMlflowClient
from mlflow_iap_callbacks.cli.commands import main
from mlflow_iap_callbacks.cli.console import with_commands_apart
from mlflow_iap_callbacks.cli.doctor_steps import Finding, examine
from mlflow_iap_callbacks.local import LocalCloud
from variables import set_all

_STEPS = ["environment", "address", "server", "credentials", "token", "MLflow"]


def _found(uri: str) -> dict[str, Finding]:
    """Return what the doctor finds, by step. Only the last finding may be a problem."""
    findings = list(examine(uri))
    assert [finding.step for finding in findings] == _STEPS[: len(findings)]
    assert all(finding.is_good for finding in findings[:-1])
    assert not findings[-1].is_good or len(findings) == len(_STEPS)
    return {finding.step: finding for finding in findings}


def _stops_at(step: str, uri: str) -> dict[str, str]:
    """The doctor's output until it stops, by step."""
    found = _found(uri)
    assert list(found)[-1] == step
    assert not found[step].is_good
    return {step: finding.saw for step, finding in found.items()}


@pytest.fixture(scope="module")
def clouds() -> Iterator[Callable[[str | None], LocalCloud]]:
    """One cloud for each OAuth client, for all tests of this file."""
    started: dict[str | None, LocalCloud] = {}

    def cloud(client_id: str | None) -> LocalCloud:
        if client_id not in started:
            started[client_id] = LocalCloud(client_id=client_id)
            started[client_id].start()
        return started[client_id]

    yield cloud
    for each in started.values():
        each.stop()


@pytest.fixture
def cloud(
    clouds: Callable[[str | None], LocalCloud], monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalCloud]:
    """IAP with the project's own OAuth client, with the variables of its user set."""
    cloud = clouds("1-own.apps.googleusercontent.com")
    set_all(monkeypatch, cloud.environment())
    members = set(cloud.members)
    yield cloud
    cloud.clear_faults()
    cloud.members |= members


@pytest.fixture
def person(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    """The same with a user's credentials, which is faster: google-auth does not check a key."""
    set_all(monkeypatch, cloud.google_environment())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(cloud.desktop_file()))
    monkeypatch.delenv("MLFLOW_IAP_CLIENT_ID")
    return cloud


# --- all well --------------------------------------------------------------------------------


def test_each_step_says_what_it_found_if_all_is_well(cloud: LocalCloud) -> None:
    cloud.fault("answer_after", path="/version", status=200, body="3.17.0\n", times=0)
    found = _found(cloud.url)
    assert found["address"].saw == cloud.url
    assert found["server"].saw == f"IAP; its OAuth client is {cloud.client_id}, your own"
    assert f"account: {cloud.trainer}" in found["credentials"].saw
    assert "kind: id_token" in found["credentials"].saw
    assert "IAP-secured Web App User" in found["token"].saw
    assert found["MLflow"] == ("MLflow", "version 3.17.0; its experiments can be read", True)
    assert not [finding for finding in found.values() if "ey" + "J" in finding.saw]


def test_a_google_managed_client_is_recognized_and_a_signed_jwt_used(
    clouds: Callable[[str | None], LocalCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = clouds(None)
    set_all(monkeypatch, cloud.environment())
    found = _found(cloud.url + "/")
    assert found["MLflow"].is_good
    assert "Google-managed (" in found["server"].saw
    assert "kind: signed_jwt" in found["credentials"].saw


# --- the environment -------------------------------------------------------------------------


def test_the_environment_step_lists_settings_and_hides_possible_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = {
        "MLFLOW_TRACKING_AUTH": "iap",
        "MLFLOW_IAP_CLIENT_ID": "1-a",
        "MLFLOW_IAP_IMPERSONATE": "a@b.example",
        "MLFLOW_TRACKING_TOKEN": "secret",
        "HTTPS_PROXY": "http://user:secret@proxy.example",
    }
    set_all(monkeypatch, variables)
    (environment, _) = examine("")
    assert environment.saw.splitlines() == [
        "MLFLOW_TRACKING_AUTH=iap",
        "MLFLOW_IAP_CLIENT_ID=1-a",
        "MLFLOW_IAP_IMPERSONATE=a@b.example",
        "MLFLOW_TRACKING_TOKEN is set, but IAP's token is used instead",
        "HTTPS_PROXY is set",
    ]


def test_the_environment_step_says_what_fails_without_mlflow_tracking_auth() -> None:
    (environment, _) = examine("")
    assert environment.saw.startswith("MLFLOW_TRACKING_AUTH is not set")


# --- where it stops --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "MLFLOW_TRACKING_URI"),
        ("mlflow", "not the URL of a server"),
        ("http://mlflow.example", "plain text"),
    ],
)
def test_it_stops_at_an_invalid_address(uri: str, says: str) -> None:
    assert says in _stops_at("address", uri)["address"]


def test_it_stops_if_the_server_is_unreachable() -> None:
    with BareServer() as server:
        url = server.url
    assert _stops_at("server", url)["server"].startswith(f"Nothing listens at {url[7:]}. Check")


def test_it_stops_at_missing_credentials_and_cannot_say_who_manages_the_client(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none.json")
    said = _stops_at("credentials", cloud.url)
    assert "/none.json" in said["credentials"]
    assert "Google-managed or your own (no ID token could be obtained" in said["server"]


def test_it_stops_at_a_missing_role_and_says_how_to_grant_it(cloud: LocalCloud) -> None:
    cloud.members.clear()
    said = _stops_at("token", cloud.url)
    assert "roles/iap.httpsResourceAccessor" in said["token"]
    assert said["server"].endswith(f"{cloud.client_id}, your own")


def test_it_stops_at_an_unexpected_response_of_iap_and_quotes_it(cloud: LocalCloud) -> None:
    answer = "There was a problem with your request. Error code 9"
    cloud.fault("answer", path="/version", status=400, body=answer, from_iap=True, times=0)
    said = _stops_at("token", cloud.url)
    assert answer in said["token"]
    assert f"Google-managed or your own (IAP answered {answer!r}" in said["server"]


def test_it_stops_if_the_application_responds_with_an_error(person: LocalCloud) -> None:
    person.fault("answer", path="/version", status=404, times=0)
    assert "404" in _stops_at("token", person.url)["token"]


def test_it_stops_if_the_api_responds_with_an_error(person: LocalCloud) -> None:
    person.fault("answer", path="/api/", status=404, body="no such page", times=0)
    said = _stops_at("MLflow", person.url)["MLflow"]
    assert said.endswith("did not come from MLflow. Check the URL.")


def test_it_stops_at_another_plugin_than_iaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "sigv4")
    said = _stops_at("environment", "https://mlflow.example")["environment"]
    assert "`export MLFLOW_TRACKING_AUTH=iap`" in said


@pytest.mark.parametrize("page", ["/#/experiments/0", "#/models", "/mlflow/#/"])
def test_it_stops_at_a_browsers_url_and_names_the_servers(page: str) -> None:
    server = f"https://mlflow.example{page.partition('#')[0]}".rstrip("/")
    said = _stops_at("address", f"https://mlflow.example{page}")["address"]
    assert said.endswith(f"Use the part before the #: {server}")
    with pytest.raises(IAPConfigurationError, match="the part before the #"):
        IAPMlflowClient(f"https://mlflow.example{page}")


def test_it_stops_at_a_host_that_does_not_exist() -> None:
    said = _stops_at("server", "https://mlflow.invalid")["server"]
    assert said.startswith("The host mlflow.invalid cannot be found. Check the URL")


def test_it_stops_at_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with BareServer() as closed:
        set_all(monkeypatch, {"HTTPS_PROXY": closed.url})
    said = _stops_at("server", "https://mlflow.example")["server"]
    assert said.startswith("The proxy in HTTPS_PROXY or HTTP_PROXY cannot be used")
    assert "add mlflow.example to NO_PROXY" in said


def test_it_stops_at_a_server_without_tls() -> None:
    with BareServer() as server:
        said = _stops_at("server", server.url.replace("http:", "https:"))["server"]
    assert "does not speak TLS. Check the URL's scheme and port." in said


@pytest.mark.parametrize("is_trusted", [False, True])
def test_it_honours_mlflows_settings_for_tls(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    google = cloud.google_environment()
    monkeypatch.setenv("HTTPS_PROXY", google["HTTPS_PROXY"])
    if is_trusted:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", google["REQUESTS_CA_BUNDLE"])
    findings = {finding.step: finding.saw for finding in examine("https://oauth2.googleapis.com")}
    is_rejected = "is not trusted" in findings["server"]
    assert is_rejected == (not is_trusted), findings
    assert ("Set MLFLOW_TRACKING_SERVER_CERT_PATH" in findings["server"]) == is_rejected


def test_it_stops_at_variables_for_tls_that_name_no_file_or_contradict_each_other(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/none.pem")
    said = _stops_at("server", cloud.url)["server"]
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH names '/none.pem', which does not exist." in said
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert "are both set" in _stops_at("server", cloud.url)["server"]


def test_it_signs_in_to_mlflows_own_authentication(
    person: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(
        monkeypatch,
        {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "pass-word"},
    )
    person.requests.clear()
    findings = [*examine(person.url)]
    assert findings[4] == ("token", findings[4].saw, True)
    versions = [seen for seen in person.requests if (seen.path, seen.status) == ("/version", 200)]
    # The other header is left to MLflow.
    assert {seen.credential_header for seen in versions} == {"proxy-authorization"}
    assert not [finding for finding in findings if "pass-word" in finding.saw]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "rejects this user. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."),
        (403, "denies access (403). Ask its administrators"),
        (404, "is not an MLflow server: it answered 404 to /version. Check the path of the URL."),
        (500, "answered 500 (Internal Server Error). MLflow is not running, or has an error."),
    ],
)
def test_it_says_what_a_status_of_the_application_means(
    person: LocalCloud, status: int, says: str
) -> None:
    person.fault("answer", path="/version", status=status, body="x", times=0)
    assert says in _stops_at("token", person.url)["token"]


def test_a_page_instead_of_a_version_is_no_mlflow(person: LocalCloud) -> None:
    person.fault("answer_after", path="/version", status=200, body="<html>Welcome", times=0)
    assert "did not come from MLflow" in _stops_at("MLflow", person.url)["MLflow"]


def test_a_server_without_iap_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none.json")
    with BareServer() as server:
        said = _stops_at("MLflow", server.url)  # it is not valid JSON
    assert said["server"] == "no IAP (it answered 200 to a request without a token)"
    assert {said[step] for step in ("credentials", "token")} == {"not needed here"}
    assert not [headers for headers in server.seen if "Authorization" in headers]


# --- the command -----------------------------------------------------------------------------


def test_the_command_marks_each_step_and_exits_with_0_if_all_is_well(
    person: LocalCloud,
) -> None:
    told = CliRunner().invoke(main, ["doctor"])
    assert told.exit_code == 0, told.output
    marks = [line.split()[:2] for line in told.output.splitlines() if line[1:2] != " "]
    assert marks == [["ok", step] for step in _STEPS]


def test_the_command_exits_with_1_if_it_stops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    told = CliRunner().invoke(main, ["doctor"])
    assert told.exit_code == 1
    assert ["no", "address"] in [line.split()[:2] for line in told.output.splitlines()]


def test_the_command_takes_a_url_and_folds_no_line(person: LocalCloud) -> None:
    person.members.clear()
    done = CliRunner().invoke(main, ["doctor", person.url], env={"COLUMNS": "40"})
    assert done.exit_code == 1
    assert f"  {person.url}\n" in done.output
    (command,) = (line for line in done.output.splitlines() if "add-iam-policy-binding" in line)
    assert command.strip().startswith("gcloud ")
    assert command.strip().endswith("--role=roles/iap.httpsResourceAccessor")


def test_commands_stand_on_lines_of_their_own() -> None:
    text = "It is `off`. Run `gcloud a --b`, then `make c d`. Try again."
    assert with_commands_apart(text).splitlines() == [
        *("It is `off`. Run", "    gcloud a --b", "then", "    make c d", "Try again."),
    ]
