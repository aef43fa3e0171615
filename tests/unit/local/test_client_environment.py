"""The environment variables of a local cloud's clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.client_environment import client_environment

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as cloud:
        yield cloud


def test_without_a_proxy_no_variable_is_set_to_bypass_it(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "internal")
    monkeypatch.setenv("https_proxy", "http://proxy")  # this machine is reached with http
    assert client_environment(cloud) == cloud.environment()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_local_requests_bypass_a_proxy(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://proxy")
    assert client_environment(cloud)["no_proxy"] == "127.0.0.1,localhost"
    monkeypatch.setenv("NO_PROXY", "internal")
    around = dict.fromkeys(("NO_PROXY", "no_proxy"), "internal,127.0.0.1,localhost")
    assert client_environment(cloud) == {**cloud.environment(), **around}
