"""How background logging is chosen."""

from __future__ import annotations

import os

import pytest
from mlflow.store.model_registry.rest_store import RestStore as ModelRegistryRestStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._model_registry import utils as registry_utils
from mlflow.tracking._tracking_service import utils

from mlflow_iap_callbacks import IAPConfigurationError, log_in_background
from mlflow_iap_callbacks.background import plugin
from mlflow_iap_callbacks.background.tracking_store import (
    BackgroundModelRegistryStore,
    BackgroundStore,
)

_URI = "https://mlflow.example"


@pytest.mark.parametrize("value", ["true", "True", "1", " strict "])
def test_a_variable_turns_it_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_IAP_BACKGROUND", value)
    assert type(plugin.tracking_store(store_uri=_URI)) is BackgroundStore
    assert type(plugin.model_registry_store(store_uri=_URI)) is BackgroundModelRegistryStore


@pytest.mark.parametrize("value", [None, "", "false", "0"])
def test_mlflow_has_its_own_stores_by_default(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("MLFLOW_IAP_BACKGROUND", value)
    assert type(plugin.tracking_store(store_uri=_URI, artifact_uri=None)) is RestStore
    assert type(plugin.model_registry_store(store_uri=_URI)) is ModelRegistryRestStore


def test_another_value_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_IAP_BACKGROUND", "yes please")
    with pytest.raises(IAPConfigurationError, match="true, strict or false"):
        plugin.tracking_store(store_uri=_URI)


@pytest.mark.parametrize("strict", [False, True])
def test_a_call_replaces_the_stores_that_mlflow_has(
    monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    tracking, registry = utils._tracking_store_registry, registry_utils._get_store_registry()
    for each in (tracking, registry):
        monkeypatch.setattr(each, "_registry", dict(each._registry))
    before = utils._get_store(_URI)
    log_in_background(strict=strict)
    assert utils._get_store(_URI) is not before
    assert type(utils._get_store(_URI)) is BackgroundStore
    assert type(registry_utils._get_store(_URI)) is BackgroundModelRegistryStore
    # Child processes read it.
    assert os.environ["MLFLOW_IAP_BACKGROUND"] == ("strict" if strict else "true")
