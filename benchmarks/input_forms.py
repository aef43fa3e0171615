"""Train on each form of data, and compare what the logged model predicts when it is loaded again.

    PYTHONPATH=tests/helpers python benchmarks/input_forms.py  # writes docs/trainings.md

Each training run logs to SQLite in a temporary folder, with ``IAPLightGBMCallback`` in three ways
and with MLflow's autolog. The model is loaded with ``mlflow.pyfunc`` and with its own flavor, and
both predict the data that it was trained on.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
from docs_parts import TRAININGS, put_into

from lightgbm_inputs import FORMS, Form, Y, in_memory
from mlflow_iap_callbacks import IAPLightGBMCallback

_PARAMS = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 1}
_ROUNDS = 3

Train = Callable[[Any, list[Any]], Any]


def _booster(data: Any, callbacks: list[Any]) -> lgb.Booster:
    train = lgb.Dataset(data) if isinstance(data, str) else lgb.Dataset(data, Y)
    return lgb.train(_PARAMS, train, _ROUNDS, callbacks=callbacks)


def _estimator(data: Any, callbacks: list[Any]) -> Any:
    model = lgb.LGBMClassifier(n_estimators=_ROUNDS, verbose=-1, n_jobs=1, random_state=1)
    return model.fit(data, np.array(["heron", "otter"])[Y], callbacks=callbacks)


def _with(train: Train, data: Any) -> Any:
    with IAPLightGBMCallback(log_pictures=False) as callback:
        return train(data, [callback])


def _finish(train: Train, data: Any) -> Any:
    callback = IAPLightGBMCallback(log_pictures=False)
    model = train(data, [callback])
    callback.finish(model, X=data, y=None)
    callback.flush()
    return model


def _autolog(train: Train, data: Any) -> Any:
    mlflow.lightgbm.autolog(silent=True)
    try:
        return train(data, [])
    finally:
        mlflow.lightgbm.autolog(disable=True, silent=True)


_WAYS: dict[str, tuple[Callable[[Train, Any], Any], Train]] = {
    "`with`, `lgb.train`": (_with, _booster),
    "`finish(booster, X=X)`": (_finish, _booster),
    "`with`, `fit`": (_with, _estimator),
    "`finish(estimator, X=X)`": (_finish, _estimator),
    "autolog, `lgb.train`": (_autolog, _booster),
    "autolog, `fit`": (_autolog, _estimator),
}


def cell(way: str, form: Form, folder: Path) -> str:
    """What became of the model of one training run: ``yes`` if it predicts the same."""
    log, train = _WAYS[way]
    if train is _estimator and not form.of_estimators:
        return ""
    data = form.make(folder)
    experiment = mlflow.set_experiment(f"{way} {os.urandom(8).hex()}").experiment_id
    try:
        model = log(train, data)
    except Exception as error:  # noqa: BLE001 - it is what the table shows
        return f"raises {type(error).__name__}"
    models = mlflow.search_logged_models([experiment], output_format="list")
    models = [each for each in models if each.status == "READY"]
    if not models:
        return "no model"
    given = in_memory(form.make(folder))
    expected = model.predict(given)
    uri = f"models:/{models[0].model_id}"
    found = {}
    for name, flavor in (("pyfunc", mlflow.pyfunc), ("flavor", mlflow.lightgbm)):
        try:
            predicted = flavor.load_model(uri).predict(given)
            found[name] = "yes" if np.array_equal(predicted, expected) else f"{name} differs"
        except Exception:  # noqa: BLE001 - it is what the table shows
            found[name] = f"{name} refuses"
    if set(found.values()) != {"yes"}:
        return ", ".join(answer for answer in found.values() if answer != "yes")
    has_signature = mlflow.models.get_model_info(uri).signature is not None
    return "yes, signature" if has_signature else "yes"


def table(forms: Iterable[str]) -> str:
    """The cells of some forms in each way, as Markdown."""
    lines = [f"| training data | {' | '.join(_WAYS)} |", f"| --- |{' :-: |' * len(_WAYS)}"]
    for name in forms:
        with tempfile.TemporaryDirectory() as folder:
            cells = [cell(way, FORMS[name], Path(folder)) for way in _WAYS]
        print(name, cells, flush=True)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    # To infer them, autolog starts a process for each model, which does not change any cell.
    mlflow.models.infer_pip_requirements = lambda *_, fallback, **__: fallback
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MLFLOW_IAP_OUTBOX": f"{folder}/outbox", "MLFLOW_DISABLE_TELEMETRY": "true"}
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        found = table(name for name in FORMS if not name.startswith("dask"))
    versions = f"LightGBM {lgb.__version__}, MLflow {mlflow.__version__}"
    put_into(TRAININGS, "make inputs", f"{found}\n\nWith {versions}.")


if __name__ == "__main__":
    main()
