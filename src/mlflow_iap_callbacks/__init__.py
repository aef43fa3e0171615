"""Optuna and LightGBM callbacks, and an MLflow client, for a tracking server behind IAP."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        IAPConfigurationError,
        IAPCredentialsError,
        IAPError,
        IAPRefusedError,
        IAPUnavailableError,
        IAPUnknownOutcomeError,
    )
    from .iap.client import IAPMlflowClient
    from .iap.credentials import IAPCredentials
    from .lightgbm.callback import IAPLightGBMCallback
    from .optuna.callback import IAPMLflowCallback

__all__ = [
    "IAPConfigurationError",
    "IAPCredentials",
    "IAPCredentialsError",
    "IAPError",
    "IAPLightGBMCallback",
    "IAPMLflowCallback",
    "IAPMlflowClient",
    "IAPRefusedError",
    "IAPUnavailableError",
    "IAPUnknownOutcomeError",
]

_HOMES = {
    "IAPCredentials": "iap.credentials",
    "IAPLightGBMCallback": "lightgbm.callback",
    "IAPMLflowCallback": "optuna.callback",
    "IAPMlflowClient": "iap.client",
}


# MLflow loads our entry point while it is being imported itself, so nothing here may import it.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return __all__
