"""Data in any form that LightGBM accepts: its first rows, its schema, and predictions for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .estimators import is_distributed, local

_ROWS = 5
# MLflow's types by pandas' dtypes. For a column of another dtype, such as category or Int64, MLflow
# infers a type that it then refuses to convert the column to.
_TYPES = {
    **dict.fromkeys(("float64", "Float64"), "double"),
    **dict.fromkeys(("float32", "Float32"), "float"),
    "float16": "float",
    "int64": "long",
    "uint32": "long",
    **dict.fromkeys(("int32", "int16", "int8", "uint16", "uint8"), "integer"),
    "bool": "boolean",
}


def first_rows(data: Any) -> Any:
    """Return a copy of the first five rows, or None if MLflow cannot store data of this kind."""
    if data is None:
        return None
    import pandas as pd
    from scipy.sparse import csc_matrix, csr_matrix

    while isinstance(data, list) and data:
        data = data[0]
    if _is_sequence(data):
        data = data[0:_ROWS]
    elif _is_lazy(data):
        data = data.head(_ROWS, npartitions=-1) if hasattr(data, "head") else data[:_ROWS].compute()
    is_array = isinstance(data, np.ndarray) and data.ndim == 2
    if not is_array and not isinstance(data, pd.DataFrame | csr_matrix | csc_matrix):
        return None
    return data[:_ROWS].copy()


def schema_of(rows: Any, names: Sequence[str] | None) -> Any:
    """Return the schema with which MLflow keeps data like these rows unchanged.

    Args:
        rows: what ``first_rows`` returned.
        names: names of the model's features; None if its columns may have other names.

    Returns:
        A Schema; None if there is none, or if the columns are not the model's features.
    """
    import pandas as pd
    from mlflow.types import ColSpec, Schema, TensorSpec

    if not isinstance(rows, pd.DataFrame):
        return Schema([TensorSpec(rows.dtype, (-1, rows.shape[1]))])
    columns = list(rows.columns)
    types = [_TYPES[str(dtype)] for dtype in rows.dtypes if str(dtype) in _TYPES]
    if len(types) < len(columns) or not all(isinstance(column, str | int) for column in columns):
        return None
    if names is not None and _as_features(columns) != _as_features(names):
        return None
    return Schema([ColSpec(kind, name) for kind, name in zip(types, columns, strict=True)])


def predict(model: Any, data: Any) -> np.ndarray:
    """Return what a model predicts for data, in memory.

    Args:
        model: a booster or an estimator; one of ``lightgbm.dask`` predicts Dask data on its
            cluster.
        data: data in any form that LightGBM accepts.
    """
    if _is_lazy(data):
        return np.asarray(model.predict(data if is_distributed(model) else data.compute()))
    return np.concatenate([np.asarray(local(model).predict(part)) for part in _parts(data)])


def _as_features(names: Sequence[str | int]) -> list[str]:
    """Names of columns as LightGBM changes them."""
    return [re.sub(r"\s", "_", str(name)) for name in names]


def _parts(data: Any) -> Iterator[Any]:
    """Split data of the kinds that LightGBM accepts for training, but not for prediction."""
    if _is_sequence(data):
        for first in range(0, len(data), data.batch_size):
            yield data[first : min(first + data.batch_size, len(data))]
    elif isinstance(data, list) and all(_is_sequence(part) or np.ndim(part) == 2 for part in data):
        for part in data:
            yield from _parts(part)
    else:
        yield data


def _is_sequence(data: Any) -> bool:
    from lightgbm import Sequence as LightGBMSequence

    return isinstance(data, LightGBMSequence)


def _is_lazy(data: Any) -> bool:
    """Whether it is a Dask collection."""
    return hasattr(data, "dask") and hasattr(data, "compute")
