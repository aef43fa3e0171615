"""Saves a model in MLflow's format, so that it predicts the same when it is loaded again."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..delivery.never_raising import never_raising
from .estimators import is_of_lightgbm, local
from .inputs import first_rows, schema_of

_REQUIREMENTS = ("mlflow", "lightgbm", "numpy", "pandas", "scikit-learn", "scipy")


def save(booster: Any, estimator: Any, data: Any, folder: Path) -> Path:
    """Save a booster, or its estimator, as the flavor of MLflow that it belongs to.

    Five rows of the data are its input example, if MLflow can store them. It has a signature if
    MLflow's schema keeps such data unchanged; without a signature, any data is passed on.

    Args:
        booster: the model.
        estimator: what is saved in place of the booster; None for the booster itself.
        data: data that it predicts, in any form that LightGBM accepts; None if it is unknown.
        folder: an empty folder.

    Returns:
        The folder in it that contains the model.
    """
    from mlflow import lightgbm, sklearn

    model, names = booster, booster.feature_name()
    if estimator is not None:
        model = local(estimator)
        names = names if is_of_lightgbm(model) else None
    flavor = lightgbm if names is not None else sklearn
    # To infer them, MLflow would load the model in another process, which takes 8 seconds.
    requirements = [f"{name}=={version(name)}" for name in _REQUIREMENTS]
    # MLflow's default format for estimators does not support custom functions and classes.
    formats: list[dict[str, str]] = [{}]
    if estimator is not None:
        formats.append({"serialization_format": "cloudpickle"})
        requirements.append(f"cloudpickle=={version('cloudpickle')}")
    signature, examples = None, [None]
    with never_raising("the example of a LightGBM model"):
        rows = first_rows(data)
        if rows is not None:
            signature = _signature(model, rows, names)
            examples = [rows, None]  # there are rows that MLflow cannot write
    errors = []
    for number, (example, form) in enumerate(product(examples, formats)):
        path = folder / str(number)
        try:
            flavor.save_model(
                model,
                path,
                signature=signature or False,  # with None, MLflow infers one from the example
                input_example=example,
                pip_requirements=requirements,
                **form,
            )
        except Exception as error:  # noqa: BLE001 - it is raised if nothing else works
            errors.append(error)
        else:
            return path
    raise errors[0]


def _signature(model: Any, rows: Any, names: Sequence[str] | None) -> Any:
    """The signature of a model that predicts these rows; None if no schema of MLflow's fits."""
    from mlflow.models import ModelSignature, infer_signature

    predicted = np.asarray(model.predict(rows))
    inputs = schema_of(rows, names)
    if inputs is None:
        return None
    return ModelSignature(inputs, infer_signature(model_output=predicted).outputs)
