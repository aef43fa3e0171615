"""What arrives on the server from a run handle, no matter what happens in between."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Run

from lightgbm_helpers import inputs
from mlflow_iap_callbacks import IAPError, IAPMlflowClient
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.outbox import journal_folder
from own_log import said_by_us
from waiting import wait_until


def _runs(name: str) -> list[Run]:
    client = IAPMlflowClient()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def _run(name: str) -> Run:
    (run,) = _runs(name)
    return run


def _curve(run: Run, metric: str) -> list[tuple[int, float]]:
    history = IAPMlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def test_a_run_can_be_logged_to_before_the_server_knows_it(cloud: LocalCloud, name: str) -> None:
    run = RunWriter(IAPMlflowClient(), name, run_name="mine", start_time=1000, tags={"a": "b"})
    run.log_params({"p": 1, "q": None})
    run.log_metrics({"m": 0.5}, step=3, timestamp=2000)
    run.finish("KILLED", end_time=3000)
    assert not cloud.requests
    assert run.flush()
    found = _run(name)
    assert (found.info.run_name, found.info.status) == ("mine", "KILLED")
    assert (found.info.start_time, found.info.end_time) == (1000, 3000)
    assert found.data.params == {"p": "1", "q": "None"}
    assert (found.data.tags["a"], found.data.tags["mlflow_iap.run_key"]) == ("b", run.key)
    (point,) = IAPMlflowClient().get_metric_history(found.info.run_id, "m")
    assert (point.step, point.timestamp, point.value) == (3, 2000, 0.5)


def test_run_id_waits_for_the_server(cloud: LocalCloud, name: str) -> None:
    run = RunWriter(IAPMlflowClient(), name)
    assert run.run_id() == _run(name).info.run_id


@pytest.mark.slow
def test_the_error_for_a_missing_run_id_says_why(cloud: LocalCloud, name: str) -> None:
    cloud.members.clear()
    run = RunWriter(IAPMlflowClient(), name)
    with pytest.raises(IAPError, match="httpsResourceAccessor"):
        run.run_id(timeout=5.0)


def test_100_iterations_of_4_metrics_take_at_most_4_requests(cloud: LocalCloud, name: str) -> None:
    client = IAPMlflowClient()
    client.create_experiment(name)
    cloud.forget()
    run = RunWriter(client, name)
    for step in range(100):
        run.log_metrics(dict.fromkeys("abcd", step / 3), step=step)
    run.finish()
    assert run.flush()
    assert len(cloud.requests) <= 4
    for metric in "abcd":
        assert _curve(_run(name), metric) == [(step, step / 3) for step in range(100)]


def test_a_run_that_the_server_creates_long_after_the_request_is_deleted_again(
    cloud: LocalCloud, name: str
) -> None:
    client = IAPMlflowClient(deadline=2.0)
    cloud.fault("reset_before", path="runs/create")
    run = RunWriter(client, name)
    run.log_metrics({"m": 0.5})
    run_id = run.run_id()  # of the run that the second request created
    experiment_id = client.get_run(run_id).info.experiment_id
    late = client.create_run(experiment_id, tags={"mlflow_iap.run_key": run.key})
    assert {found.info.run_id for found in _runs(name)} == {run_id, late.info.run_id}
    run.finish()
    assert run.flush()
    assert _run(name).info.run_id == run_id


def test_points_are_sent_again_if_the_server_is_out_of_connections(
    cloud: LocalCloud, name: str
) -> None:
    told = {
        "error_code": "BAD_REQUEST",
        "message": "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout "
        "30.00 (Background on this error at: https://sqlalche.me/e/21/3o7r)",
    }
    cloud.fault("answer", status=400, body=json.dumps(told), path="log-batch")
    run = RunWriter(IAPMlflowClient(), name)
    run.log_metrics({"m": 0.5}, step=1)
    run.finish()
    assert run.flush()
    assert _curve(_run(name), "m") == [(1, 0.5)]


@pytest.mark.slow
def test_what_does_not_fit_into_one_request_arrives_in_several(
    cloud: LocalCloud, name: str
) -> None:
    run = RunWriter(IAPMlflowClient(), name, tags={f"first {i}": "é" * 7000 for i in range(150)})
    metrics = {f"m{i}": i / 7 for i in range(2345)}
    params = {f"p{i}": "é" * 6000 for i in range(250)}
    tags = {f"t{i}": "é" * 8000 for i in range(250)}
    run.log_metrics(metrics)
    run.log_params(params)
    run.set_tags(tags)
    run.finish()
    assert run.flush()
    found = _run(name)
    assert found.data.metrics == metrics
    assert found.data.params == params
    assert {key: value for key, value in found.data.tags.items() if key[0] == "t"} == tags
    assert sum(key.startswith("first ") for key in found.data.tags) == 150


@pytest.mark.slow
def test_an_outage_is_reported_once_at_its_start_and_once_at_its_end(
    cloud: LocalCloud, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunWriter(IAPMlflowClient(), name)
    run.run_id()
    cloud.members.clear()
    for step in range(50):
        run.log_metrics({"m": step / 2}, step=step)
    assert not run.flush(2.0)
    run.finish()
    assert not run.flush(2.0)
    (start,) = said_by_us(caplog)
    assert "cannot be written to" in start
    assert "httpsResourceAccessor" in start
    cloud.members.add(cloud.trainer)
    assert run.flush()
    _, end = said_by_us(caplog)
    assert "accepts records again" in end
    assert _curve(_run(name), "m") == [(step, step / 2) for step in range(50)]


@pytest.mark.slow
def test_a_run_is_created_once_even_if_its_response_is_lost_and_it_cannot_be_looked_up(
    cloud: LocalCloud, name: str
) -> None:
    client = IAPMlflowClient(max_attempts=2)
    client.create_experiment(name)
    cloud.fault("reset_after", path="runs/create")
    cloud.fault("answer", path="runs/search", status=503, times=0)
    run = RunWriter(client, name, tags={"a": "b"})
    run.log_metrics({"m": 1.0})
    run.finish()
    assert not run.flush(3.0)
    cloud.clear_faults()
    assert run.flush()
    found = _run(name)
    assert (found.data.tags["a"], found.data.metrics) == ("b", {"m": 1.0})
    assert found.info.status == "FINISHED"


def test_two_processes_that_create_the_same_experiment_at_once_share_it(
    cloud: LocalCloud, name: str
) -> None:
    IAPMlflowClient().create_experiment(name)
    cloud.fault("answer", path="experiments/get-by-name", status=404, body=_NO_EXPERIMENT)
    run = RunWriter(IAPMlflowClient(), name)
    run.finish()
    assert run.flush()
    assert _run(name).info.status == "FINISHED"


_NO_EXPERIMENT = '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'


def test_what_mlflow_rejects_is_reported_once_and_the_rest_arrives(
    cloud: LocalCloud, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunWriter(IAPMlflowClient(), name)
    IAPMlflowClient().log_param(run.run_id(), "x", "before")
    run.log_params({"x": "after", "y": 1})
    run.log_params({"y": 1, "z": 2})
    run.log_params({"y": 2})
    run.log_metrics({"m": 1.0, "none": None})  # type: ignore[dict-item]
    run.log_metrics({"far": 1.0, "n": 2.0}, step=2**70)
    run.log_metrics({"k": 2.0}, step=2)
    run.set_tags({5: "five", "odd": "\ud800"})  # type: ignore[dict-item]
    run.finish()
    result = run.flush()
    assert (result.waiting, result.refused) == (0, 2)
    found = _run(name)
    assert found.data.params == {"x": "before", "y": "1", "z": "2"}
    assert found.data.metrics == {"m": 1.0, "k": 2.0}
    assert (found.data.tags["5"], found.data.tags["odd"]) == ("five", "?")
    assert found.info.status == "FINISHED"
    lifecycle.exit_process()
    (journal,) = journal_folder.survey()
    assert journal.records() == 0
    assert journal.refused.total() == 2
    assert sum("rejected" in message for message in said_by_us(caplog)) == 1


def test_a_run_that_was_deleted_in_mlflow_is_refused_in_few_requests(
    cloud: LocalCloud, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = IAPMlflowClient()
    run, other = RunWriter(client, name), RunWriter(client, name)
    client.delete_run(run.run_id())
    cloud.forget()
    for step in range(1000):
        run.log_metrics({"m": 1.0}, step=step)
    run.finish()
    other.finish()
    result = run.flush()
    assert (result.waiting, result.refused) == (0, 1001)
    assert len(cloud.requests) < 10
    assert _run(name).data.tags["mlflow_iap.run_key"] == other.key
    assert sum("rejected" in message for message in said_by_us(caplog)) == 1


@pytest.mark.slow
def test_a_failing_upload_delays_neither_its_run_nor_others(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    cloud.fault("answer", path="mlflow-artifacts", status=500, times=0)
    client = IAPMlflowClient(max_attempts=1)
    stuck, other = RunWriter(client, name), RunWriter(client, name)
    stuck.log_artifact(tmp_path / "a.txt")
    stuck.finish()
    assert not stuck.flush(5.0)
    for run in (other, RunWriter(client, name)):
        run.log_metrics({"m": 1.0})
        run.finish()
    wait_until(lambda: sum(r.info.status == "FINISHED" for r in _runs(name)) == 3, "the runs")
    cloud.clear_faults()
    assert stuck.flush()
    assert [file.path for file in client.list_artifacts(stuck.run_id())] == ["a.txt"]


def test_artifacts_arrive_as_they_were_when_logged(
    cloud: LocalCloud, name: str, tmp_path: Path
) -> None:
    file, folder, stays = tmp_path / "file.txt", tmp_path / "folder", tmp_path / "stays.txt"
    file.write_text("then")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "x.txt").write_text("x")
    stays.write_text("s")
    run = RunWriter(IAPMlflowClient(), name)
    run.log_artifact(file, "texts")
    run.log_artifact(folder)
    run.log_artifact(stays, copy=False)
    file.write_text("now")
    (folder / "sub" / "x.txt").unlink()
    run.finish()
    assert run.flush()
    client = IAPMlflowClient()
    got = Path(client.download_artifacts(run.run_id(), "", str(tmp_path)))
    assert (got / "texts" / "file.txt").read_text() == "then"
    assert (got / "folder" / "sub" / "x.txt").read_text() == "x"
    assert (got / "stays.txt").read_text() == "s"
    assert not list(journal_folder.folder().rglob("*.txt"))


def test_a_missing_artifact_is_reported_and_the_run_continues(
    cloud: LocalCloud, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("x")
    run = RunWriter(IAPMlflowClient(), name)
    run.log_artifact(tmp_path / "never.txt")
    run.log_artifact(file, copy=False)
    file.unlink()
    run.finish()
    assert run.flush() == (2, 0, 1)
    assert _run(name).info.status == "FINISHED"
    assert [("never.txt" in told, "file.txt" in told) for told in said_by_us(caplog)] == [
        (True, False),
        (False, True),
    ]


def test_a_data_set_becomes_an_input_of_the_run(cloud: LocalCloud, name: str) -> None:
    dataset = from_numpy(np.zeros((3, 2)), name="zeros")
    run = RunWriter(IAPMlflowClient(), name)
    run.log_input(dataset, "training")
    run.finish()
    assert run.flush()
    (found,) = inputs(_run(name))
    assert (found.dataset.name, found.dataset.digest) == ("zeros", dataset.digest)
    assert {tag.key: tag.value for tag in found.tags} == {"mlflow.data.context": "training"}


def test_names_are_never_merged_and_numbers_are_never_invented(
    cloud: LocalCloud, name: str
) -> None:
    run = RunWriter(IAPMlflowClient(), name, tags={"tag@1": "t"})
    values = {"ndcg@1": 0.5, "ndcg#1": 0.25, "none": math.nan, "inf": math.inf}
    run.log_metrics({**values, "f32": np.float32(0.5)})
    run.log_metrics({"none": math.nan})
    run.log_params({"p@1": 1, "p#1": 2})
    run.finish()
    assert run.flush()
    found = _run(name)
    assert sorted(found.data.metrics.values())[:3] == [0.25, 0.5, 0.5]
    assert found.data.metrics["inf"] > 1e308
    assert "none" not in found.data.metrics
    assert found.data.tags["mlflow_iap.skipped_nan_points"] == "2"
    assert sorted(found.data.params.values()) == ["1", "2"]
    originals = {v for k, v in found.data.tags.items() if k.startswith("mlflow_iap.name.")}
    assert originals == {"ndcg@1", "ndcg#1", "p@1", "p#1", "tag@1"}


def test_what_is_logged_after_the_end_of_a_run_arrives(cloud: LocalCloud, name: str) -> None:
    run = RunWriter(IAPMlflowClient(), name)
    run.finish()
    run.log_metrics({"before": 1.0})
    assert run.flush()
    run.log_metrics({"after": 2.0})
    assert run.flush()
    assert _run(name).data.metrics == {"before": 1.0, "after": 2.0}


def test_no_journal_contains_a_token_or_a_password(cloud: LocalCloud, name: str) -> None:
    uri = cloud.url.replace("://", "://user:secret@")
    run = RunWriter(IAPMlflowClient(uri), name)
    run.log_metrics({"m": 1.0})
    run.run_id()
    texts = [file.read_bytes() for file in journal_folder.folder().iterdir()]
    assert any(cloud.url.encode() in text for text in texts)
    # Tokens are JSON in base64, so they begin with these three letters.
    assert not [secret for secret in (b"secret", b"eyJ") for text in texts if secret in text]


def test_a_plain_mlflow_client_and_its_store_work_too(tmp_path: Path, name: str) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/own.db")
    run = RunWriter(client, name)
    run.log_metrics({"m": 1.0})
    run.finish()
    assert run.flush()
    found: Any = client.get_run(run.run_id())
    assert (found.data.metrics, found.info.status) == ({"m": 1.0}, "FINISHED")
