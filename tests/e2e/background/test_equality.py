"""The same program with and without background logging: MLflow stores the same in both cases."""

from __future__ import annotations

import pytest

from equality import IMPORTS, assert_equal
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from scripts import Start

__all__ = ["IMPORTS"]  # of the programs that the fixture `start` starts

FLUENT = """
with mlflow.start_run(run_name="fluent", tags={"a": "b"}, description="text") as run:
    run_id = run.info.run_id
    for step in range(30):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metrics({"x/y": step, "z z": np.float32(step)}, step=step)
    mlflow.log_metrics({"nan": float("nan"), "inf": float("inf"), "big": 10**300, "-": -0.0})
    mlflow.log_metric("old", 1, timestamp=5, step=-3)
    assert mlflow.log_param("rate", 0.1) == 0.1
    mlflow.log_params({"layers": [1, 2], "long": "x" * 7000, "none": None, "é": "ü"})
    mlflow.set_tag("t", "u")
    mlflow.set_tags({"gone": 1, "t": "v"})
    mlflow.delete_tag("gone")
    assert mlflow.get_run(run_id).data.metrics["loss"] == 1 / 30
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [1, 2]})
    for context in ("training", "test"):
        data = mlflow.data.from_pandas(frame, name=f"numbers {context}")
        mlflow.log_input(data, context, tags={"k": "w"})
    mlflow.log_text("é", "notes.txt")
    mlflow.log_dict({"a": [1]}, "deep/er/config.json")
    mlflow.log_table({"epoch": [0], "seen": [1]}, "tables/epochs.json")
    mlflow.log_table({"epoch": [1], "seen": [2]}, "tables/epochs.json")
    mlflow.log_image(np.zeros((4, 4, 3), np.uint8), "plots/image.png")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inner").mkdir()
        (Path(folder) / "inner" / "a.txt").write_text("a")
        (Path(folder) / "b.txt").write_text("b")
        (Path(folder) / "link.txt").symlink_to(Path(folder) / "b.txt")
        mlflow.log_artifacts(folder)
        mlflow.log_artifacts(folder, "some/where")
        mlflow.log_artifact(os.path.join(folder, "inner"))
        mlflow.log_artifact(os.path.join(folder, "link.txt"), "links")
    assert "notes.txt" in [each.path for each in MlflowClient().list_artifacts(run_id)]
    with mlflow.start_run(run_name="child", nested=True):
        mlflow.log_metric("inner", 1)
    mlflow.log_metric("after", 1)
with mlflow.start_run(run_id=run_id, tags={"resumed": "yes"}):
    mlflow.log_metric("loss", 5.0, step=99)
    assert mlflow.active_run().info.status == "RUNNING"
assert mlflow.get_run(run_id).info.status == "FINISHED"
assert mlflow.last_active_run().data.metrics["loss"] == 5.0

client = MlflowClient()
run = client.create_run(client.get_experiment_by_name(NAME).experiment_id, run_name="client")
run_id = run.info.run_id
client.log_batch(run_id, [Metric(f"m{n % 7}", n, 7, n) for n in range(1200)],
                 [Param(f"p{n}", str(n)) for n in range(150)], [RunTag("k", "v")])
client.log_metric(run_id, "m0", 3.0, step=4)
client.log_param(run_id, "p", 1)
client.set_tag(run_id, "k", "w")
client.update_run(run_id, name="renamed")
assert len(client.get_metric_history(run_id, "m0")) == 173
client.set_terminated(run_id, "KILLED", end_time=12345)
assert client.get_run(run_id).info.end_time == 12345
gone = client.create_run(run.info.experiment_id, run_name="gone").info.run_id
client.log_metric(gone, "m", 1)
client.delete_run(gone)
client.restore_run(gone)
client.log_metric(gone, "m", 2, step=1)
for name, text in (("a*", "1"), ("b" * 300, "1")):
    try:
        client.log_param(run_id, name, text)
    except mlflow.MlflowException as error:
        client.set_tag(run_id, "error", error.error_code)
assert len(mlflow.search_runs(search_all_experiments=True)) >= 4
mlflow.start_run(run_name="left open")
mlflow.log_metric("last", 1)
"""

THREADS = """
client = MlflowClient()
place = client.get_experiment_by_name(NAME).experiment_id
shared = client.create_run(place, run_name="shared").info.run_id

def work(number):
    with mlflow.start_run(run_name=f"thread {number}"):
        for step in range(50):
            mlflow.log_metric("loss", step * number, step=step)
            client.log_metric(shared, f"of {number}", step, step=step)
        mlflow.log_text(str(number), "number.txt")

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
client.set_terminated(shared)
"""

FORKS = """
def work(run_id):
    client = MlflowClient()
    for step in range(20):
        client.log_metric(run_id, f"of child", step, step=step)
    with mlflow.start_run(run_name="of child"):
        mlflow.log_metric("m", 1)

with mlflow.start_run(run_name="parent") as run:
    for step in range(20):
        mlflow.log_metric("before", step, step=step)
    mlflow.log_param("a", 1)
    child = multiprocessing.get_context("fork").Process(target=work, args=(run.info.run_id,))
    child.start()
    mlflow.log_metric("meanwhile", 1)
    child.join()
    assert child.exitcode == 0
    seen = mlflow.get_run(run.info.run_id).data.metrics
    assert seen["of child"] == 19 and seen["meanwhile"] == 1
"""

CHILD = """
if len(sys.argv) > 3:
    with mlflow.start_run():
        mlflow.log_metric("of child", 1)
        mlflow.log_param("child", "yes")
        mlflow.log_text("x", "child.txt")
    sys.exit()
with mlflow.start_run(run_name="parent") as run:
    mlflow.log_metric("of parent", 1)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "child"], check=True,
                   env={**os.environ, "MLFLOW_RUN_ID": run.info.run_id})
    mlflow.log_metric("of parent", 2, step=1)
    assert mlflow.get_run(run.info.run_id).data.metrics["of child"] == 1
"""

ASYNCHRONOUS = """
os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "true"
with mlflow.start_run(run_name="asynchronous") as run:
    for step in range(50):
        mlflow.log_metric("loss", step, step=step)
    mlflow.log_params({"a": 1})
    mlflow.set_tag("b", "c")
    MlflowClient().log_metric(run.info.run_id, "d", 1, synchronous=False).wait()
    mlflow.flush_async_logging()
    assert len(MlflowClient().get_metric_history(run.info.run_id, "loss")) == 50
"""

CALLS = """
client = MlflowClient()
place = client.get_experiment_by_name(NAME).experiment_id
for number, last in enumerate(("FAILED", "RUNNING")):
    run_id = client.create_run(place, run_name=f"ended {number}").info.run_id
    client.set_terminated(run_id, "FINISHED", end_time=5)
    client.update_run(run_id, status=last)
    client.log_metric(run_id, "after the end", 1)
run_id = client.create_run(place, run_name="deleted").info.run_id
for step in range(50):
    client.log_metric(run_id, "m", step, step=step)
client.delete_run(run_id)
assert client.get_run(run_id).info.lifecycle_stage == "deleted"
assert client.get_run(run_id).data.metrics == {"m": 49}
client.restore_run(run_id)

with mlflow.start_run(run_name="traced") as run:
    with mlflow.start_span("span") as span:
        mlflow.log_metric("in a trace", 1)
        span.set_outputs({"a": 1})
    mlflow.set_tag("mlflow.runName", "renamed")
mlflow.flush_trace_async_logging()
(trace,) = mlflow.search_traces(locations=[place], run_id=run.info.run_id, return_type="list")
assert trace.data.spans[0].outputs == {"a": 1}

with mlflow.start_run(run_name="evaluated") as run:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": [0, 1, 0, 1], "p": [0, 1, 1, 1]})
    data = mlflow.data.from_pandas(frame, predictions="p", targets="y")
    result = mlflow.models.evaluate(data=data, model_type="classifier",
                                    evaluator_config={"log_explainer": False})
    assert result.metrics.keys() == mlflow.get_run(run.info.run_id).data.metrics.keys()

with mlflow.start_run(run_name="modelled") as run:
    info = mlflow.pyfunc.log_model(name="m", python_model=lambda model_input: model_input,
                                   pip_requirements=["mlflow"])
    mlflow.log_metric("of the model", 0.5, step=3, model_id=info.model_id)
    mlflow.set_logged_model_tags(info.model_id, {"gone": "1", "kept": "1"})
    mlflow.delete_logged_model_tag(info.model_id, "gone")
    mlflow.log_model_params({"p": "1"}, model_id=info.model_id)
    assert mlflow.last_logged_model().model_id == info.model_id
    assert mlflow.pyfunc.load_model(info.model_uri).predict(["q"]) == ["q"]
    assert mlflow.register_model(info.model_uri, f"registered-{NAME}").version == "1"
    mlflow.finalize_logged_model(mlflow.initialize_logged_model(name="n").model_id, "READY")
try:
    with mlflow.start_run(run_name="failed"):
        mlflow.log_artifact("/no/such/file")
except FileNotFoundError:
    pass
"""

LIGHTGBM = """
import lightgbm as lgb
params = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 1}
mlflow.lightgbm.autolog()
with mlflow.start_run(run_name="trained") as run:
    data = lgb.Dataset(X, Y)
    booster = lgb.train(params, data, 12, [lgb.Dataset(X, Y, reference=data)])
    info = mlflow.lightgbm.log_model(booster, name="again", pip_requirements=["lightgbm"],
                                     registered_model_name=f"registered-{NAME}")
loaded = mlflow.lightgbm.load_model(info.model_uri)
assert np.allclose(loaded.predict(X), booster.predict(X))
"""

SKLEARN = """
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
mlflow.sklearn.autolog(max_tuning_runs=2)
with mlflow.start_run(run_name="search"):
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(X, Y)
"""

XGBOOST = """
import xgboost as xgb
mlflow.xgboost.autolog()
with mlflow.start_run(run_name="trained"):
    data = xgb.DMatrix(X, Y)
    params = {"objective": "binary:logistic", "nthread": 1}
    xgb.train(params, data, 8, evals=[(data, "train")], verbose_eval=False)
"""


def test_the_fluent_api_and_the_client_store_the_same(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    assert_equal(start, name, FLUENT, MLFLOW_TRACKING_AUTH="iap")


@pytest.mark.slow
def test_they_store_the_same_on_a_server_without_iap(
    bare_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, start: Start, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bare_server.url)
    assert_equal(start, name, FLUENT)


@pytest.mark.slow
def test_calls_that_read_end_or_delete_what_was_logged_before_store_the_same(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    assert_equal(start, name, CALLS, MLFLOW_TRACKING_AUTH="iap")


@pytest.mark.slow
@pytest.mark.parametrize("program", [THREADS, FORKS, CHILD, ASYNCHRONOUS])
def test_threads_and_processes_store_the_same(
    cloud: LocalCloud, start: Start, name: str, program: str
) -> None:
    assert_equal(start, name, program, MLFLOW_TRACKING_AUTH="iap")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "program"), [("lightgbm", LIGHTGBM), ("sklearn", SKLEARN), ("xgboost", XGBOOST)]
)
def test_autologging_stores_the_same(
    cloud: LocalCloud, start: Start, name: str, library: str, program: str
) -> None:
    pytest.importorskip(library)
    assert_equal(start, name, program, MLFLOW_TRACKING_AUTH="iap")
