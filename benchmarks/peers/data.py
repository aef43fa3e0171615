"""Small data sets, and reproducible training with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightgbm as lgb
import numpy as np

from .peer import Curves

ROWS, FEATURES = 173, 19
NAMES = [f"measure_{letter}" for letter in "abcdefghijklmnopqrs"]
PARAMS: Mapping[str, Any] = {
    "objective": "binary",
    "metric": ["auc", "binary_logloss"],
    "eta": 0.07,
    "num_leaves": 6,
    "min_data_in_leaf": 5,
    "num_threads": 1,
    "seed": 3,
    "verbosity": -1,
}


def points(seed: int = 0, rows: int = ROWS, features: int = FEATURES) -> tuple[Any, Any]:
    """Return features, and noisy labels 0 and 1."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, features))
    y = (x[:, :3].sum(axis=1) + random.normal(scale=1.5, size=rows) > 0).astype(int)
    return x, y


def sets(seed: int = 0) -> tuple[lgb.Dataset, lgb.Dataset]:
    """Return a training and a validation set."""
    x, y = points(seed)
    train = lgb.Dataset(x, y, feature_name=NAMES, free_raw_data=False)
    x, y = points(seed + 1000, 80)
    return train, lgb.Dataset(x, y, reference=train, feature_name=NAMES, free_raw_data=False)


def train(
    callbacks: Sequence[Any],
    *,
    rounds: int = 12,
    seed: int = 0,
    params: Mapping[str, Any] = PARAMS,
    names: Sequence[str] = ("train", "valid"),
    **options: Any,
) -> tuple[lgb.Booster, Curves]:
    """Train with two sets; also return the curves that LightGBM itself recorded."""
    recorded: dict[str, dict[str, list[float]]] = {}
    train_set, valid_set = sets(seed)
    booster = lgb.train(
        dict(params),
        train_set,
        rounds,
        valid_sets=[train_set, valid_set],
        valid_names=list(names),
        callbacks=[lgb.record_evaluation(recorded), *callbacks],
        **options,
    )
    first = options["init_model"].current_iteration() if "init_model" in options else 0
    return booster, curves_of(recorded, first)


def curves_of(recorded: Mapping[str, Mapping[str, Sequence[float]]], first: int = 0) -> Curves:
    """Return `record_evaluation`'s lists as points, starting with the step `first`."""
    return {
        f"{data} {metric}": list(enumerate(values, first))
        for data, metrics in recorded.items()
        for metric, values in metrics.items()
    }


def error_rate(name: str, threshold: float = 0.5) -> Callable[..., tuple[str, float, bool]]:
    """A custom metric."""

    def metric(predicted: Any, data: lgb.Dataset) -> tuple[str, float, bool]:
        y = data.get_label()
        return name, float(np.mean(np.abs(predicted - y) ** (1 + threshold))), False

    return metric
