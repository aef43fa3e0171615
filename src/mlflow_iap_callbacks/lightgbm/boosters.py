"""The boosters of a model: one, or several in a cross-validation."""

from __future__ import annotations

from typing import Any


def is_cv(model: Any) -> bool:
    """Whether the model is a CVBooster, on which ``hasattr`` is always true."""
    return "boosters" in vars(model)


def boosters_of(model: Any) -> list[Any]:
    """The boosters of a CVBooster, or a Booster itself."""
    return list(model.boosters) if is_cv(model) else [model]


def names_of(model: Any) -> list[str]:
    """Names of the features."""
    return list(boosters_of(model)[0].feature_name())
