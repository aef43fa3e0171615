"""``mlflow-iap token``: what it shows, and what it never shows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from mlflow_iap_callbacks.cli.commands import main
from mlflow_iap_callbacks.iap.google_tokens import claims_of
from mlflow_iap_callbacks.local import LocalCloud
from variables import set_all


@pytest.fixture(scope="module")
def shared_cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(shared_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    set_all(monkeypatch, shared_cloud.environment())
    return shared_cloud


def _token(*options: str) -> Result:
    return CliRunner().invoke(main, ["token", *options])


def test_it_shows_source_kind_account_and_audience_but_not_the_token(cloud: LocalCloud) -> None:
    shown = _token()
    assert shown.exit_code == 0, shown.output
    rows = dict(line.split(maxsplit=1) for line in shown.output.splitlines())
    assert rows["kind"].strip() == "id_token"
    assert rows["account"].strip() == cloud.trainer
    assert rows["audience"].strip() == cloud.client_id
    assert re.fullmatch(r"\d+ s", rows["lifetime"].strip())
    assert "ey" + "J" not in shown.output


def test_raw_prints_the_token_and_nothing_else(cloud: LocalCloud) -> None:
    token = _token("--raw").output
    assert claims_of(token.strip())["email"] == cloud.trainer
    assert token == token.strip() + "\n"


def test_without_a_client_id_the_token_is_a_jwt_for_the_server(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_IAP_CLIENT_ID")
    host = cloud.url.removeprefix("http://")
    assert claims_of(_token("--raw").output.strip())["aud"] == f"https://{host}/*"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MLFLOW_TRACKING_URI": ""}, "MLFLOW_TRACKING_URI"),
        ({"MLFLOW_TRACKING_URI": "mlflow"}, "not the URL of a server"),
        ({"GOOGLE_APPLICATION_CREDENTIALS": "/none.json"}, "/none.json"),
        ({"MLFLOW_IAP_IMPERSONATE": "trainer"}, "MLFLOW_IAP_IMPERSONATE"),
    ],
)
def test_a_problem_is_reported_without_a_traceback(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    set_all(monkeypatch, variables)
    told = _token()
    assert (told.exit_code, says in told.output) == (1, True), told.output
    assert told.output.startswith("Error: ")
    assert told.output.count("\n") == 1
