"""What the summary of the LightGBM callback says about training, and the links it shows."""

from __future__ import annotations

import threading
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks import IAPLightGBMCallback


def _train(callback: IAPLightGBMCallback) -> Any:
    data = lgb.Dataset(np.arange(60.0).reshape(30, 2), np.arange(30.0))
    params = {"verbosity": -1, "min_data_in_leaf": 1, "num_threads": 1, "objective": "l2"}
    return lgb.train(params, data, 3, valid_sets=[data], valid_names=["v"], callbacks=[callback])


def test_it_says_how_training_ended_the_best_values_and_where_the_run_is() -> None:
    server = FakeMlflow()
    callback = IAPLightGBMCallback(client=FakeClient(server))
    booster = _train(callback)
    assert callback.flush()
    rows = callback.summary().rows
    assert list(rows) == ["training", "best v-l2", "link", "delivered", "waiting", "refused"]
    assert rows["training"] == "FINISHED after 3 iterations"
    assert rows["best v-l2"] == f"{booster.best_score['v']['l2']:g} at iteration 2"
    assert callback.run is not None
    assert rows["link"] == callback.run.url
    assert callback.run.run_id() in rows["link"]
    assert f"<a href='{rows['link']}'" in callback.summary()._repr_html_()


def test_without_training_it_is_about_the_delivery() -> None:
    callback = IAPLightGBMCallback(client=FakeClient(FakeMlflow()))
    assert list(callback.summary().rows) == ["delivered", "waiting", "refused"]


def test_training_runs_of_several_threads_are_numbered() -> None:
    callback = IAPLightGBMCallback(client=FakeClient(FakeMlflow()))
    _train(callback)
    other = threading.Thread(target=_train, args=(callback,))
    other.start()
    other.join()
    rows = callback.summary().rows
    assert {"training 1", "training 2", "best v-l2 of training 2"} <= rows.keys()


def test_a_new_run_shows_its_link_once_and_a_given_run_shows_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = FakeClient(FakeMlflow())
    callback = IAPLightGBMCallback(client=client, run_name="mine")
    _train(callback)
    callback.flush()
    callback.flush()
    assert callback.run is not None
    assert capsys.readouterr().err == f"Run mine: {callback.run.url}\n"
    given = IAPLightGBMCallback(callback.run.run_id(), client=client)
    _train(given)
    given.flush()
    assert capsys.readouterr().err == ""
