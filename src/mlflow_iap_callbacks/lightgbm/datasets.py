"""LightGBM's data sets, as inputs of an MLflow run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset

from .boosters import is_cv

_MOST_COLUMNS = 1000  # in a schema
_MOST_ROWS = 10_000  # in a digest, as in MLflow's own


class LightGBMData(Dataset):
    """A ``lightgbm.Dataset`` during training, when LightGBM may have freed the raw data.

    Args:
        data: the constructed data set.
        name: its name.
        names: names of the features.
        infos: range (``[0:1]``) or categories (``1:2:3``) of each feature.
    """

    profile = schema = None  # they are in ``to_dict``

    def __init__(self, data: Any, name: str, names: Sequence[str], infos: Sequence[str]) -> None:
        self._rows = int(data.num_data())
        self._names = names
        self._categorical = [
            feature
            for feature, info in zip(names, infos, strict=False)
            if info != "none" and not info.startswith("[")
        ]
        self._digested = hashlib.sha256(repr((self._rows, names, infos)).encode())
        for field in ("label", "weight", "group"):
            values = data.get_field(field)
            if values is not None:
                self._digested.update(values[:: max(1, len(values) // _MOST_ROWS)].tobytes())
        super().__init__(CodeDatasetSource({}), name)

    def _compute_digest(self) -> str:
        return self._digested.hexdigest()[:16]

    def to_dict(self) -> dict[str, str]:
        """The fields that MLflow logs; the schema is empty if there are too many features."""
        kinds = dict.fromkeys(self._categorical, "long")
        columns = [
            {"type": kinds.get(name, "double"), "name": name, "required": True}
            for name in self._names
        ]
        is_wide = len(columns) > _MOST_COLUMNS
        profile = {
            "num_rows": self._rows,
            "num_features": len(self._names),
            "num_elements": self._rows * len(self._names),
            "categorical_features": self._categorical[:_MOST_COLUMNS],
        }
        return {
            **super().to_dict(),
            "schema": json.dumps({} if is_wide or not columns else {"mlflow_colspec": columns}),
            "profile": json.dumps(profile),
        }


def data_of(
    model: Any, names: Sequence[str], infos: Sequence[str]
) -> Iterator[tuple[LightGBMData, str]]:
    """The data sets that a model is trained on, each with its context, such as ``training``.

    ``names`` and ``infos`` are as for ``LightGBMData``.
    """
    if is_cv(model):
        fold = model.boosters[0].train_set
        yield LightGBMData(fold.reference or fold, "cv", names, infos), "cross-validation"
        return
    name = getattr(model, "_train_data_name", "training")
    yield LightGBMData(model.train_set, name, names, infos), "training"
    for name, data in zip(model.name_valid_sets, model.valid_sets, strict=True):
        yield LightGBMData(data, name, names, infos), "validation"
