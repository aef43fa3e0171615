"""Turns on background logging for MLflow's API, by an environment variable or a call.

Heavy modules are imported inside the functions, because MLflow loads this module while it is
itself being imported.
"""

from __future__ import annotations

import atexit
import os
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .writes import Writes

VARIABLE = "MLFLOW_IAP_BACKGROUND"
_STRICT = "strict"
_ON = ("true", "1", _STRICT)
_OFF = ("false", "0", "")


def log_in_background(*, strict: bool = False) -> None:
    """Make all of MLflow's API log in the background from now on.

    MLFLOW_IAP_BACKGROUND=true does the same. Both work with any tracking server, with or without
    IAP. Writes to runs (metrics, params, tags, data sets, artifacts, ends of runs) are stored in a
    journal on disk, and sent like those of this package's callbacks. Reads wait until these writes
    are delivered. A request whose response is needed, such as the creation of a run, is sent at
    once. Child processes log in the background, too.

    What MLflow permanently rejects is reported in a warning, and listed by ``mlflow-iap status``.

    Args:
        strict: whether ``mlflow.flush_async_logging()`` raises an ``IAPError`` if MLflow rejected
            something, or if not everything was delivered within a minute.
            MLFLOW_IAP_BACKGROUND=strict does the same.

    Examples:
        ```python
        mlflow.set_tracking_uri("https://mlflow.example.com")
        log_in_background()
        mlflow.autolog()
        ```
    """
    from mlflow.tracking._model_registry import utils as registry_utils
    from mlflow.tracking._tracking_service import utils

    os.environ[VARIABLE] = _STRICT if strict else "true"
    _writes.cache_clear()
    # MLflow gets new stores, even if it already has some, or has not loaded this entry point.
    for registry, store in (
        (utils._tracking_store_registry, tracking_store),
        (registry_utils._get_store_registry(), model_registry_store),
    ):
        for scheme in ("http", "https"):
            registry.register(scheme, store)
        registry._get_store_with_resolved_uri.cache_clear()


def tracking_store(store_uri: str, **_: Any) -> Any:
    """Return MLflow's tracking store for a server."""
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.credentials import get_default_host_creds

    if not _is_chosen():
        return RestStore(partial(get_default_host_creds, store_uri))

    from .tracking_store import BackgroundStore

    return BackgroundStore(_writes(store_uri))


def model_registry_store(store_uri: str, **_: Any) -> Any:
    """Return MLflow's model registry store for a server."""
    from mlflow.store.model_registry.rest_store import RestStore
    from mlflow.utils.credentials import get_default_host_creds

    if not _is_chosen():
        return RestStore(partial(get_default_host_creds, store_uri))

    from .tracking_store import BackgroundModelRegistryStore

    return BackgroundModelRegistryStore(_writes(store_uri))


def _choice() -> str:
    return os.environ.get(VARIABLE, "").strip().lower()


def _is_chosen() -> bool:
    from ..errors import IAPConfigurationError

    value = _choice()
    if value not in (*_ON, *_OFF):
        raise IAPConfigurationError(f"{VARIABLE} is {value!r}. Set it to true, strict or false.")
    return value in _ON


@cache
def _writes(uri: str) -> Writes:
    from mlflow.tracking import fluent

    from .writes import Writes  # registers the function that delivers at exit

    # Registered last, so called first: MLflow ends the active run before the delivery at exit.
    end_run = getattr(fluent, "_safe_end_run", None)
    if end_run is not None:
        atexit.unregister(end_run)
        atexit.register(end_run)
    return Writes(uri, partial(_client, uri), is_strict=_choice() == _STRICT)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    from ..errors import IAPConfigurationError
    from ..iap.client import IAPMlflowClient

    try:
        return IAPMlflowClient(uri)
    except IAPConfigurationError:  # no IAP, but another authentication, or plain http
        return MlflowClient(uri)
