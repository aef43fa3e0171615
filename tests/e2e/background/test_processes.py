"""Background logging across outages and the ends of processes, with a real server."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

import killed_trainings
import python_process
from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.outbox import journal_folder
from scripts import Start, command, starting

IMPORTS = """
import sys
import mlflow
from mlflow_iap_callbacks import log_in_background
log_in_background()
"""

_TRAINING = """
import os, time
import lightgbm as lgb, numpy as np
x = np.random.default_rng(0).random((100, 4))
mlflow.set_experiment(sys.argv[1])
mlflow.lightgbm.autolog()
with mlflow.start_run(run_name="trained"):
    print("begun", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    data = lgb.Dataset(x, x[:, 0])
    lgb.train({"verbosity": -1, "num_threads": 1}, data, 20, [data], valid_names=["seen"])
    print("trained", flush=True)
"""


def _waiting() -> int:
    return sum(journal.records() for journal in journal_folder.survey())


@pytest.mark.slow
def test_training_goes_on_while_the_server_is_away_and_sync_delivers_it(
    cloud: LocalCloud, start: Start, name: str, tmp_path: Path
) -> None:
    outage = tmp_path / "outage"
    script = start(_TRAINING, name, str(outage))
    script.wait_for("begun")
    cloud.fault("answer", status=503, times=0)
    outage.touch()
    assert script.end() == 0, script.err
    assert "left on disk" in script.err
    assert _waiting()

    cloud.clear_faults()
    done = command("sync")
    assert done.returncode == 0, done.stdout
    client = IAPMlflowClient()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "seen-l2")) == 20
    assert len(client.list_artifacts(run.info.run_id)) == 4
    assert run.data.params["num_threads"] == "1"
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == "READY"
    assert len(model.metrics or ()) == 20
    assert mlflow.models.get_model_info(f"models:/{output.model_id}").model_id == output.model_id
    assert _waiting() == 0


@pytest.mark.slow
def test_what_a_killed_process_had_logged_is_in_mlflow_once(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with starting(tmp_path, killed_trainings.IMPORTS) as start:
        for program in (killed_trainings.VICTIMS, killed_trainings.NEXT):
            script = start(program, name, str(notes), "7", "3")
            assert script.end(240.0) == 0, script.err
    assert killed_trainings.wrong(IAPMlflowClient(), name, notes) == []
    assert _waiting() == 0


@pytest.mark.slow
def test_it_works_beside_both_callbacks(cloud: LocalCloud, start: Start, name: str) -> None:
    script = start(
        """
        import lightgbm as lgb, numpy as np, optuna
        from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback
        x = np.random.default_rng(0).random((100, 4))
        params = {"verbosity": -1, "num_threads": 1}
        mlflow.set_experiment(sys.argv[1])
        callback = IAPMLflowCallback()

        def objective(trial):
            data = lgb.Dataset(x, x[:, 0])
            lgb.train(params, data, 5, [data],
                      callbacks=[IAPLightGBMCallback(run=callback.run(trial))])
            with mlflow.start_run(run_name=f"own {trial.number}") as run:
                mlflow.log_metric("m", trial.suggest_float("x", 0, 1))
                mlflow.log_dict({"a": 1}, "a.json")
            found = mlflow.get_run(run.info.run_id).data.metrics
            assert found == {"m": trial.params["x"]}, found
            return 1.0

        study = optuna.create_study(study_name=sys.argv[1] + " study")
        study.optimize(objective, 3, callbacks=[callback])
        """,
        name,
    )
    assert script.end() == 0, script.err
    own = mlflow.search_runs(experiment_names=[name], output_format="list")
    assert sorted(str(run.info.run_name) for run in own) == ["own 0", "own 1", "own 2"]
    trials = mlflow.search_runs(experiment_names=[f"{name} study"], output_format="list")
    assert {run.info.status for run in [*own, *trials]} == {"FINISHED"}
    curves = [run.data.metrics for run in trials if "training-l2" in run.data.metrics]
    assert len(curves) == 3
    assert _waiting() == 0


@pytest.mark.slow
def test_system_metrics_are_logged_with_each_step_once(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    pytest.importorskip("psutil")
    script = start(
        """
        import time
        mlflow.set_system_metrics_sampling_interval(0.05)
        mlflow.set_system_metrics_samples_before_logging(2)
        mlflow.enable_system_metrics_logging()
        mlflow.set_experiment(sys.argv[1])
        with mlflow.start_run(run_name="watched") as run:
            read = mlflow.MlflowClient().get_metric_history
            while len(read(run.info.run_id, "system/cpu_utilization_percentage")) < 3:
                time.sleep(0.01)
        """,
        name,
    )
    assert script.end() == 0, script.err
    (run,) = mlflow.search_runs(experiment_names=[name], output_format="list")
    assert run.info.status == "FINISHED"
    names = {each.partition("_")[0] for each in run.data.metrics}
    assert names >= {"system/cpu", "system/system", "system/disk", "system/network"}
    for metric in run.data.metrics:
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
        steps = sorted(point.step for point in history)
        assert len(steps) >= 3
        assert steps == list(range(len(steps)))


@pytest.mark.slow
def test_a_variable_alone_turns_it_on(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow loads the entry points of the installed package."""
    monkeypatch.setenv("MLFLOW_IAP_BACKGROUND", "true")
    script = (
        "from mlflow.tracking._model_registry.utils import _get_store as registry;"
        "from mlflow.tracking._tracking_service.utils import _get_store as tracking;"
        "print(type(tracking()).__name__, type(registry()).__name__)"
    )
    done = python_process.run("-c", script, modules=())
    assert done.stdout.strip() == "BackgroundStore BackgroundModelRegistryStore"


def test_a_program_that_ends_delivers_its_run_and_leaves_no_journal(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        mlflow.set_experiment(sys.argv[1])
        mlflow.start_run(run_name="left open")
        for step in range(100):
            mlflow.log_metric("loss", step, step=step)
        """,
        name,
    )
    assert script.end() == 0, script.err
    mlflow.set_experiment(name)
    (run,) = mlflow.search_runs(output_format="list")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 99.0})
    folder = journal_folder.folder()
    assert sorted(folder.iterdir()) == []
