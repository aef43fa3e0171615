"""Training data in each form that LightGBM accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import scipy.sparse as sp
from dask import array

_ROWS = 200
_rng = np.random.default_rng(0)
A, B = _rng.normal(size=_ROWS), _rng.normal(size=_ROWS)
Y = (A + B > 0).astype(int)
_INTEGERS = _rng.integers(0, 90, _ROWS)
_TEXTS = np.array(["x", "y", "z"])[_INTEGERS % 3]
_LAST = np.arange(_ROWS) == _ROWS - 1
_BOTH = np.c_[A, B]


class Rows(lgb.Sequence):
    """Data that is read in batches."""

    batch_size = 64

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._values[index])

    def __len__(self) -> int:
        return len(self._values)


class Form(NamedTuple):
    """A form of data.

    Attributes:
        make: creates the data; gets a folder for files.
        has_signature: whether MLflow has a schema that takes such data unchanged.
        of_estimators: whether the estimators of ``lightgbm.sklearn`` accept it too.
    """

    make: Callable[[Path], Any]
    has_signature: bool = False
    of_estimators: bool = True


def _frame(second: Any) -> Form:
    frame = pd.DataFrame({"a": A, "b": second})
    dtype = frame["b"].dtype
    is_plain = isinstance(dtype, np.dtype) and dtype.kind in "iufb" and dtype != np.uint64
    return Form(lambda _: frame, is_plain or str(dtype) in ("Float32", "Float64"))


def _nullable(values: Any, dtype: str) -> Any:
    found = pd.array(values, dtype=dtype)
    found[_LAST] = pd.NA
    return found


def _file(folder: Path) -> str:
    path = folder / "train.csv"
    np.savetxt(path, np.c_[Y, _BOTH], delimiter=",")
    return str(path)


def _of(data: Any, has_signature: bool = False) -> Form:
    return Form(lambda _: data, has_signature)


FORMS: dict[str, Form] = {
    "pandas: float64": _frame(B),
    "pandas: float32": Form(lambda _: pd.DataFrame({"a": A, "b": B}).astype("float32"), True),
    "pandas: float64 with NaN": _frame(np.where(_LAST, np.nan, B)),
    "pandas: int64": _frame(_INTEGERS),
    "pandas: int8": _frame(_INTEGERS.astype("int8")),
    "pandas: uint64": _frame(_INTEGERS.astype("uint64")),
    "pandas: bool": _frame(B > 0),
    "pandas: Int64 with NA": _frame(_nullable(_INTEGERS, "Int64")),
    "pandas: boolean with NA": _frame(_nullable(B > 0, "boolean")),
    "pandas: Float64 with NA": _frame(_nullable(B, "Float64")),
    "pandas: Float32 with NA": _frame(_nullable(B.astype("float32"), "Float32")),
    "pandas: category of str": _frame(pd.Series(_TEXTS, dtype="str").astype("category")),
    "pandas: category of string": _frame(pd.Series(_TEXTS, dtype="string").astype("category")),
    "pandas: category of object, with NA": _frame(
        pd.Series([*_TEXTS[:-1], None], dtype=object).astype("category")
    ),
    "pandas: category of int": _frame(pd.Categorical(_INTEGERS % 4)),
    "pandas: category of bool": _frame(pd.Categorical(B > 0)),
    "pandas: ordered category": _frame(pd.Categorical(_TEXTS, ordered=True)),
    "pandas: sparse": _frame(pd.arrays.SparseArray(np.where(B > 0, B, 0.0))),
    "pandas: a name with a space": _of(pd.DataFrame({"my age": A, "b": B}), True),
    "pandas: no names": _of(pd.DataFrame(_BOTH), True),
    "numpy: float64": _of(_BOTH, True),
    "numpy: float32": _of(_BOTH.astype("float32"), True),
    "numpy: int64": _of(np.c_[_INTEGERS, _INTEGERS[::-1]], True),
    "numpy: bool": _of(_BOTH > 0, True),
    "scipy: csr_matrix": _of(sp.csr_matrix(_BOTH), True),
    "scipy: csc_matrix": _of(sp.csc_matrix(_BOTH), True),
    "scipy: coo_matrix": _of(sp.coo_matrix(_BOTH)),
    "scipy: csr_array": _of(sp.csr_array(_BOTH)),
    "scipy: csc_array": _of(sp.csc_array(_BOTH)),
    "scipy: coo_array": _of(sp.coo_array(_BOTH)),
    "pyarrow: Table": _of(pa.table({"a": A, "b": B})),
    "polars: DataFrame": _of(pl.DataFrame({"a": A, "b": B})),
    "lightgbm: Sequence": Form(lambda _: Rows(_BOTH), True, of_estimators=False),
    "lightgbm: list of Sequence": Form(
        lambda _: [Rows(_BOTH[:120]), Rows(_BOTH[120:])], True, of_estimators=False
    ),
    "list of numpy arrays": Form(lambda _: [_BOTH[:120], _BOTH[120:]], True, of_estimators=False),
    "a file": Form(_file, of_estimators=False),
    "dask: Array": Form(lambda _: array.from_array(_BOTH, (100, 2)), True),
}


def in_memory(data: Any) -> Any:
    """The same data in a form that LightGBM predicts, if it does not predict this one."""
    if isinstance(data, Rows):
        return data[:]
    if isinstance(data, list):
        return np.concatenate([in_memory(part) for part in data])
    return data.compute() if hasattr(data, "dask") else data
