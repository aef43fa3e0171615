"""A training loop without a framework that logs to an ``IAPRun``: what can be used afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import lightgbm as lgb
import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Run
from PIL import Image

from mlflow_iap_callbacks import IAPMlflowClient, IAPRun
from mlflow_iap_callbacks.local import LocalCloud
from scripts import Start, command

IMPORTS = """
import os, signal, sys, threading
from mlflow_iap_callbacks import IAPMlflowClient, IAPRun

NAME = sys.argv[1]
"""


def _run(name: str) -> Run:
    client = IAPMlflowClient()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert isinstance(run, Run)
    return run


@pytest.mark.slow
def test_everything_that_a_loop_logs_can_be_used_afterwards(
    cloud: LocalCloud, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0] * 10, "y": [2.0, 4.0, 6.0, 8.0] * 10})
    train = lgb.Dataset(frame[["x"]], frame["y"])
    booster = lgb.train({"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 1}, train, 5)
    mlflow.lightgbm.save_model(booster, tmp_path / "saved", pip_requirements=["lightgbm"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    figure = Figure()
    figure.subplots().plot([1, 2])

    with IAPRun(experiment_name=name, run_name="loop", tags={"team": "x"}) as run:
        run.log_params({"rate": 0.1})
        run.log_input(from_pandas(frame, name="numbers"), "training")
        for epoch in range(3):
            run.log_metrics({"loss": 1 / (epoch + 1)}, epoch)
            run.log_metric("time", 0.5, step=epoch)
            run.log_table({"epoch": [epoch], "seen": [10 * epoch]}, "tables/epochs.json")
            run.log_image(pixels, key="pixels", step=epoch)
        run.log_dict({"a": [1, 2]}, "config.yaml")
        run.log_figure(figure, "plots/figure.png")
        run.log_image(pixels, "plots/image.png")
        run.log_text("é", "notes.txt")
        run.log_artifacts(tmp_path / "folder", "files")
        run.log_model(tmp_path / "saved", "numbers", registered_name=f"numbers-{name}")
    result = run.flush()
    assert result
    assert result.delivered > 15

    found = _run(name)
    run_id = found.info.run_id
    client = IAPMlflowClient()
    assert run.run_id() == run_id
    assert (found.info.status, found.info.run_name) == ("FINISHED", "loop")
    assert f"Run loop: {run.url}" in capsys.readouterr().err
    assert f"/runs/{run_id}?" in str(run.url)
    history = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert found.data.params == {"rate": "0.1"}
    assert found.inputs is not None
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.tags[0].value) == ("numbers", "training")

    read = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    assert (read / "notes.txt").read_text(encoding="utf-8") == "é"
    assert (read / "files" / "a.txt").read_text() == "a"
    assert (read / "config.yaml").read_text() == "a:\n- 1\n- 2\n"
    assert Image.open(read / "plots" / "figure.png").size == (640, 480)
    assert (np.asarray(Image.open(read / "plots" / "image.png")) == pixels).all()
    series = sorted((read / "images").iterdir())
    assert len(series) == 6
    assert {file.suffix: Image.open(file).size for file in series} == {
        ".png": (4, 4),
        ".webp": (256, 256),  # the small picture that MLflow's page shows
    }
    table = client.load_table(found.info.experiment_id, "tables/epochs.json", [run_id])
    assert table.to_dict("list") == {"epoch": [0, 1, 2], "seen": [0, 10, 20]}

    model = mlflow.pyfunc.load_model(f"models:/numbers-{name}/1")
    assert model.predict(frame[["x"]]) == pytest.approx(booster.predict(frame[["x"]]))
    (logged,) = client.search_logged_models([found.info.experiment_id])
    assert (logged.name, logged.source_run_id) == ("numbers", run_id)


_LOOP = """
run = IAPRun(experiment_name=NAME, run_name="loop")
for step in range(20):
    run.log_metrics({"m": step / 2}, step)
run.log_text("text", "a.txt")
"""


def _is_complete(name: str) -> bool:
    run = _run(name)
    client = IAPMlflowClient()
    history = client.get_metric_history(run.info.run_id, "m")
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    return [p.step for p in history] == list(range(20)) and files == ["a.txt"]


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        ("run.finish()", 0, "FINISHED"),
        pytest.param("", 0, "FAILED", marks=pytest.mark.slow),
        pytest.param("raise ZeroDivisionError", 1, "FAILED", marks=pytest.mark.slow),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGTERM)\nthreading.Event().wait()",
            *(-15, "FAILED"),
            marks=pytest.mark.slow,
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "FAILED"),
    ],
    ids=["finish", "open", "exception", "SIGTERM", "SIGKILL"],
)
def test_nothing_that_a_handle_logged_is_lost_no_matter_how_its_process_ends(
    cloud: LocalCloud, start: Start, name: str, end: str, code: int, status: str
) -> None:
    script = start(f"{_LOOP}\n{end}", name)
    assert script.end() == code, script.err
    assert command("sync").returncode == 0
    assert _is_complete(name)
    run = _run(name)
    assert run.info.status == status
    assert ("mlflow_iap.ended" in run.data.tags) == (end != "run.finish()")


@pytest.mark.slow
def test_a_with_block_does_not_wait_long_for_a_server_that_is_down(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    cloud.fault("answer", status=503, times=0)
    script = start(
        """
        with IAPRun(experiment_name=NAME, client=IAPMlflowClient(max_attempts=1)) as run:
            run.log_metrics({"m": 1.0})
        result = run.flush(0.0)
        print(bool(result), *result)
        """,
        name,
    )
    assert script.end(30.0) == 0, script.err
    assert script.out.split() == ["False", "0", "3", "0"]
    assert re.search(r"3 records left on disk for \S+", script.err)
    cloud.clear_faults()
    assert command("sync").returncode == 0
    assert _run(name).info.status == "FINISHED"
