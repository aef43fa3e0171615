"""Finds the LightGBM model in an estimator, and the estimator that LightGBM trains for."""

from __future__ import annotations

from types import FrameType
from typing import Any, NamedTuple

# Attributes in which scikit-learn's estimators keep the only estimator that they fitted.
_FITTED = ("best_estimator_", "estimator_", "regressor_")


class Fitted(NamedTuple):
    """A trained model.

    Attributes:
        booster: the Booster or CVBooster.
        estimator: the estimator that predicts with it; None for a booster without one.
    """

    booster: Any
    estimator: Any


def fitted(model: Any) -> Fitted:
    """Find the only LightGBM model in a booster or an estimator.

    Args:
        model: a Booster, a CVBooster, a fitted LightGBM estimator, or an estimator of scikit-learn
            with one, such as a Pipeline. For a search, its best estimator is used.

    Raises:
        TypeError: there is no trained model in it, or several.
    """
    from lightgbm import Booster, CVBooster

    if isinstance(model, Booster) or (isinstance(model, CVBooster) and model.boosters):
        return Fitted(model, None)
    estimator = _state(model).get("best_estimator_", model)
    booster = _booster_in(estimator)
    if booster is None or not hasattr(estimator, "predict"):
        raise TypeError(
            "finish takes a Booster, a CVBooster, or a fitted estimator with one LightGBM model, "
            f"not {_explained(model)}"
        )
    return Fitted(booster, estimator)


def fitting(engine: FrameType | None) -> tuple[Any, Any]:
    """Return the estimator whose ``fit`` called LightGBM, and its ``X``; None for ``lgb.train``.

    ``engine`` is the frame of ``lgb.train``, if it was found.
    """
    frame = None if engine is None else engine.f_back
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if module == "lightgbm.engine":
            break  # a training run whose callback trains another model
        if module == "lightgbm.sklearn" and frame.f_code.co_name == "fit":
            return frame.f_locals.get("self"), frame.f_locals.get("X")
        frame = frame.f_back
    return None, None


def is_of_lightgbm(estimator: Any) -> bool:
    """Return whether an estimator is one of ``lightgbm.sklearn`` or ``lightgbm.dask``."""
    from lightgbm import LGBMModel

    return isinstance(estimator, LGBMModel)


def local(estimator: Any) -> Any:
    """Return an estimator that needs no Dask cluster."""
    return estimator.to_local() if is_distributed(estimator) else estimator


def is_distributed(estimator: Any) -> bool:
    """Return whether an estimator is one of ``lightgbm.dask``."""
    return hasattr(type(estimator), "to_local")


def _booster_in(estimator: Any) -> Any:
    while estimator is not None:
        if is_of_lightgbm(estimator):
            return getattr(estimator, "booster_", None)
        state = _state(estimator)
        steps = state.get("steps")
        inner = [steps[-1][1]] if steps else [state[name] for name in _FITTED if name in state]
        estimator = inner[0] if inner else None
    return None


def _state(found: Any) -> dict[str, Any]:
    return getattr(found, "__dict__", {}) if not isinstance(found, type) else {}


def _explained(model: Any) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}. Pass a fitted instance."
    kind = type(model).__name__
    kind = f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
    if is_of_lightgbm(model):
        return f"{kind} that is not fitted. Call its fit method first."
    if hasattr(model, "boosters"):
        return f"{kind} without boosters. Pass the one that lgb.cv returned."
    if isinstance(model, dict):
        return (
            "a dict. For lgb.cv, set return_cvbooster=True and pass the item 'cvbooster' of its "
            "result."
        )
    if hasattr(model, "fit"):
        return (
            f"{kind} without one, or with several. Pass one of its LightGBM estimators, once "
            "it is fitted."
        )
    return f"{kind}. Pass what lgb.train returned, or the fitted estimator."
