"""The pytest fixtures for other projects, in projects of a test."""

from __future__ import annotations

import pytest

from pages import ROOT, blocks

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

# Instead of MLflow: an application that responds with what it received.
_ECHO = """
import pytest

class Echo:
    url = None

@pytest.fixture(scope="session")
def iap_mlflow_server():
    return Echo()
"""
_TESTS = """
import os, sys
import pytest

_FOREIGN = ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_IAP_CLIENT_ID")
_seen = set()


def test_nothing_is_imported_or_changed_without_the_fixtures():
    assert not {"mlflow", "aiohttp", "requests", "google.auth"} & set(sys.modules)
    assert {os.environ[name] for name in _FOREIGN} == {"https://production.example"}


@pytest.mark.parametrize("time", [1, 2])
def test_a_test_has_an_iap_and_variables_of_its_own(iap_cloud, time):
    assert not [name for name in _FOREIGN if name in os.environ]
    assert "MLFLOW_RUN_ID" not in os.environ
    os.environ["MLFLOW_RUN_ID"] = "of this test"
    assert not iap_cloud.requests and not iap_cloud.faults
    iap_cloud.fault("answer", times=0)
    _seen.add((iap_cloud.url, os.environ["MLFLOW_IAP_OUTBOX"]))
    assert len(_seen) == time
    assert os.environ["MLFLOW_TRACKING_URI"] == iap_cloud.url


@pytest.mark.parametrize("time", [1, 2])
def test_tokens_are_of_the_same_kind_in_each_test(iap_cloud, time):
    from mlflow_iap_callbacks.iap.mlflow_plugin import auth_for

    with auth_for(iap_cloud.url).session() as session:
        session.get(iap_cloud.url)
    assert iap_cloud.requests[-1].token_kind == "signed_jwt"


def test_the_variables_are_restored():
    assert os.environ["MLFLOW_REGISTRY_URI"] == "https://production.example"
    assert "MLFLOW_RUN_ID" not in os.environ
"""


def _outcomes(pytester: pytest.Pytester) -> dict[str, int]:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider").parseoutcomes()


def test_a_test_is_isolated_and_without_the_fixtures_nothing_happens(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_IAP_CLIENT_ID"):
        monkeypatch.setenv(name, "https://production.example")
    pytester.makeconftest(_ECHO)
    pytester.makepyfile(_TESTS)
    assert _outcomes(pytester) == {"passed": 6}


def test_the_tests_on_the_page_pass_with_the_fixtures_and_a_real_server(
    pytester: pytest.Pytester,
) -> None:
    text = "\n".join(block.text for block in blocks(ROOT / "docs" / "local.md", "python"))
    pytester.makepyfile(text)
    assert _outcomes(pytester) == {"passed": 2}
