"""The data sets of a training, as MLflow's inputs of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset

from .boosters import is_cv

# A schema is for people; one of more columns is a list of numbers.
_MOST_COLUMNS = 1000
_MOST_ROWS = 10_000  # for a digest, as MLflow's own


class LightGBMData(Dataset):
    """A ``lightgbm.Dataset`` as it is known in a training: LightGBM lets go of the raw data.

    Args:
        data: constructed.
        name: of the set.
        names: of its features.
        infos: of each feature its range, ``[0:1]``, or its categories, ``1:2:3``.
    """

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
        """Of shape, names, ranges and 10,000 labels, weights and groups."""
        return self._digested.hexdigest()[:16]

    def to_dict(self) -> dict[str, str]:
        """As MLflow logs it."""
        schema = {"mlflow_colspec": self.schema} if self.schema else {}
        return {
            **super().to_dict(),
            "schema": json.dumps(schema),
            "profile": json.dumps(self.profile),
        }

    @cached_property
    def profile(self) -> dict[str, Any]:
        """Shape, and which features are categories."""
        return {
            "num_rows": self._rows,
            "num_features": len(self._names),
            "num_elements": self._rows * len(self._names),
            "categorical_features": self._categorical[:_MOST_COLUMNS],
        }

    @cached_property
    def schema(self) -> list[dict[str, Any]]:
        """Columns by name."""
        if len(self._names) > _MOST_COLUMNS:
            return []
        kinds = dict.fromkeys(self._categorical, "long")
        return [
            {"type": kinds.get(name, "double"), "name": name, "required": True}
            for name in self._names
        ]


def data_of(
    model: Any, names: Sequence[str], infos: Sequence[str]
) -> Iterator[tuple[LightGBMData, str]]:
    """What a model is trained and evaluated on, each with what it is for.

    Args:
        model: a Booster or a CVBooster, in training.
        names: of the features.
        infos: as ``LightGBMData`` takes them.
    """
    if is_cv(model):
        fold = model.boosters[0].train_set
        yield LightGBMData(fold.reference or fold, "cv", names, infos), "cross-validation"
        return
    name = getattr(model, "_train_data_name", "training")
    yield LightGBMData(model.train_set, name, names, infos), "training"
    for name, data in zip(model.name_valid_sets, model.valid_sets, strict=True):
        yield LightGBMData(data, name, names, infos), "validation"
