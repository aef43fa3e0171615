"""What is trained: a Booster, or the several of a cross-validation."""

from __future__ import annotations

from typing import Any


def is_cv(model: Any) -> bool:
    """Whether it is a CVBooster, which claims to have any attribute."""
    return "boosters" in vars(model)


def boosters_of(model: Any) -> list[Any]:
    """Of a CVBooster those of its folds, else the one."""
    return list(model.boosters) if is_cv(model) else [model]
