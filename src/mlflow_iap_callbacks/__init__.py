"""Optuna and LightGBM callbacks, and an MLflow client, for a server behind Google's IAP."""

from __future__ import annotations

import logging
import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .background.plugin import log_in_background
    from .delivery.flush_result import IAPFlushResult
    from .delivery.run import IAPRun
    from .errors import (
        IAPConfigurationError,
        IAPCredentialsError,
        IAPError,
        IAPRefusedError,
        IAPUnavailableError,
        IAPUnknownOutcomeError,
    )
    from .iap.auth import IAPAuth
    from .iap.client import IAPMlflowClient
    from .iap.credentials import IAPCredentials
    from .lightgbm.callback import IAPLightGBMCallback
    from .optuna.callback import IAPMLflowCallback

    # MLflow itself spells MlflowClient and, formerly in Optuna, MLflowCallback.
    IAPMlflowCallback = IAPMLflowCallback
    IAPMLflowClient = IAPMlflowClient

__all__ = [
    "IAPAuth",
    "IAPConfigurationError",
    "IAPCredentials",
    "IAPCredentialsError",
    "IAPError",
    "IAPFlushResult",
    "IAPLightGBMCallback",
    "IAPMLflowCallback",
    "IAPMlflowClient",
    "IAPRefusedError",
    "IAPRun",
    "IAPUnavailableError",
    "IAPUnknownOutcomeError",
    "log_in_background",
]

_HOMES = {
    "IAPAuth": "iap.auth",
    "IAPCredentials": "iap.credentials",
    "IAPFlushResult": "delivery.flush_result",
    "IAPLightGBMCallback": "lightgbm.callback",
    "IAPMLflowCallback": "optuna.callback",
    "IAPMlflowClient": "iap.client",
    "IAPRun": "delivery.run",
    "log_in_background": "background.plugin",
}
# Modules by the names that pickles of version 0.1.0 contain.
_MOVED = {
    f"{__name__}.{old}": f"{__name__}.{new}"
    for old, new in {
        "client": "iap.client",
        "credentials": "iap.credentials",
        "google_identity": "iap.google_tokens",
        "iap_auth": "iap.auth",
        "lightgbm_callback": "lightgbm.callback",
        "lightgbm_results": "lightgbm.finished_model",
        "optuna_callback": "optuna.callback",
        "retry": "iap.retry_policy",
        "runs": "delivery.run_writer",
    }.items()
}


def _add_prefix(record: logging.LogRecord) -> bool:
    """Prefix a message with `mlflow-iap:`, and remove passwords from it."""
    from .iap.passwords import without_passwords

    record.msg, record.args = f"mlflow-iap: {without_passwords(record.getMessage())}", None
    if record.exc_info:
        record.exc_text = without_passwords(logging.Formatter().formatException(record.exc_info))
    return True


# The client, the delivery and the callbacks all use this logger.
_logger = logging.getLogger(__name__)
_logger.addFilter(_add_prefix)
# Its warnings say where data is left. Without a level of its own, it has the root logger's, which
# others change: MLflow's autologging of PyTorch Lightning sets it to ERROR.
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.WARNING)


# MLflow loads the entry points while it is being imported, so nothing here may import MLflow.
def __getattr__(name: str) -> Any:
    # Upper and lower case of these names are easily confused: IAPMlflowCallback.
    right = next((each for each in __all__ if each.lower() == name.lower()), None)
    if right is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(right, 'errors')}", __name__), right)


def __dir__() -> list[str]:
    return __all__


class _MovedModules(MetaPathFinder, Loader):
    """Finds a module by its former name."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        moved = import_module(_MOVED[module.__name__])
        module.__dict__["__getattr__"] = partial(getattr, moved)


sys.meta_path.append(_MovedModules())
