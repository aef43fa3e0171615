"""The run handle: MLflow's methods without waiting, the end of its run, and what flush returns."""

from __future__ import annotations

import inspect
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data import numpy_dataset
from optuna import TrialPruned
from PIL import Image

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks import IAPFlushResult, IAPRun
from mlflow_iap_callbacks.delivery import run as run_module
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from virtual_process import VirtualProcess

# Arguments that make no sense for a handle: it never waits, and knows its run.
_LEFT_OUT = {"run_id", "synchronous", "model_id", "dataset_name", "dataset_digest"}
_OF_THE_CLIENT = (
    *("log_metric", "log_param", "set_tag", "log_artifact", "log_artifacts", "log_text"),
    *("log_dict", "log_figure", "log_image", "log_table"),
)
_OF_THE_FLUENT_API = ("log_metrics", "log_params", "set_tags", "log_input")


def _run(process: VirtualProcess, **given: Any) -> IAPRun:
    process.enter()
    return IAPRun(client=process.client, experiment_name="experiment", **given)


@pytest.mark.parametrize("name", _OF_THE_CLIENT)
def test_a_method_takes_what_mlflows_client_takes_in_the_same_order(name: str) -> None:
    theirs = inspect.signature(getattr(MlflowClient, name)).parameters
    ours = inspect.signature(getattr(IAPRun, name)).parameters
    wanted = [(each, theirs[each].kind, theirs[each].default) for each in theirs]
    found = [(each, ours[each].kind, ours[each].default) for each in ours]
    if name == "log_artifact":
        assert found.pop()[0] == "copy"
    assert found == [each for each in wanted if each[0] not in _LEFT_OUT]


@pytest.mark.parametrize("name", _OF_THE_FLUENT_API)
def test_a_method_has_names_and_defaults_as_in_mlflows_fluent_api(name: str) -> None:
    theirs = inspect.signature(getattr(mlflow, name)).parameters
    ours = inspect.signature(getattr(IAPRun, name)).parameters
    for each in [*ours][1:]:
        assert each in theirs
        required = name == "log_input" and each == "dataset"
        assert required or ours[each].default == theirs[each].default


def test_metrics_params_and_tags_arrive(server: FakeMlflow, process: VirtualProcess) -> None:
    with _run(process, run_name="mine", tags={"a": 1}) as run:
        run.log_metric("loss", 0.5, 1_700_000_000_123, 3)
        run.log_metric("loss", 0.25, step=4)
        run.log_metrics({"loss": 0.125}, 5)
        run.log_param("depth", 3)
        run.log_params({"rate": 0.1})
        run.set_tag("b", 2)
        run.set_tags({"c": 3})
    logged = server.run(run.key)
    assert logged.curve("loss") == [(3, 0.5), (4, 0.25), (5, 0.125)]
    assert 1_700_000_000_123 in {time for _, _, time, _ in logged.points}
    assert logged.params == {"depth": "3", "rate": "0.1"}
    assert {"a": "1", "b": "2", "c": "3"}.items() <= logged.tags.items()
    assert (logged.name, logged.status) == ("mine", "FINISHED")


def test_files_of_each_kind_can_be_opened(
    server: FakeMlflow, process: VirtualProcess, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "in/b.txt"):
        (tmp_path / name).write_text(name)
    figure = Figure()
    figure.subplots().plot([1, 2])
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    with _run(process) as run:
        run.log_artifacts(tmp_path, "all")
        run.log_artifact(tmp_path / "a.txt")
        run.log_text("é", "text/c.txt")
        run.log_dict({"a": [1]}, "d.json")
        run.log_dict({"a": [1]}, "d.yaml")
        run.log_figure(figure, "plots/e.png", save_kwargs={"dpi": 50})
        run.log_image(pixels, "f.png")
        run.log_image(Image.fromarray(pixels), key="samples/one", step=2)
    logged = server.run(run.key)
    files = logged.artifacts
    assert (files["all/a.txt"], files["all/in/b.txt"], files["a.txt"]) == (
        b"a.txt",
        b"in/b.txt",
        b"a.txt",
    )
    assert files["text/c.txt"].decode() == "é"
    assert json.loads(files["d.json"]) == {"a": [1]}
    assert files["d.yaml"] == b"a:\n- 1\n"
    assert Image.open(io.BytesIO(files["plots/e.png"])).size == (320, 240)
    assert Image.open(io.BytesIO(files["f.png"])).size == (6, 4)
    series = [name for name in files if name.startswith("images/samples")]
    assert sorted(Path(name).suffix for name in series) == [".png", ".webp"]
    assert all(Image.open(io.BytesIO(files[name])).size for name in series)
    assert logged.tags["mlflow.loggedImages"] == "True"


@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_rows_are_appended_to_a_table_while_the_server_is_away(
    server: FakeMlflow, process: VirtualProcess, ending: str
) -> None:
    server.is_away = True
    frame = pd.DataFrame({"x": [1, 2], "picture": [Image.new("L", (2, 3))] * 2})
    run = _run(process)
    run.log_table({"x": [0]}, f"tables/a.{ending}")
    if ending == "json":
        run.log_table(frame, "pictures.json")
    run.log_table({"x": [1]}, f"tables/a.{ending}")
    run.log_table({"x": 2}, f"./tables/a.{ending}")
    assert isinstance(frame["picture"][0], Image.Image)  # as it was given
    server.is_away = False
    run.finish()
    assert run.flush()
    logged = server.run(run.key)
    content = io.BytesIO(logged.artifacts[f"tables/a.{ending}"])
    read: Any = pd.read_parquet if ending == "parquet" else pd.read_json
    table = read(content, **({} if ending == "parquet" else {"orient": "split"}))
    assert table["x"].tolist() == [0, 1, 2]
    known = {each["path"] for each in json.loads(logged.tags["mlflow.loggedArtifacts"])}
    assert known == {f"tables/a.{ending}", *(["pictures.json"] if ending == "json" else [])}


def test_a_data_set_is_an_input_with_its_context_and_tags(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    data = numpy_dataset.from_numpy(np.arange(4.0), name="numbers")
    with _run(process) as run:
        run.log_input(data, "training", {"fold": "1"})
    (given,) = server.run(run.key).inputs.values()
    tags = {tag.key: tag.value for tag in given.tags}
    assert (given.dataset.name, tags) == (
        "numbers",
        {"mlflow.data.context": "training", "fold": "1"},
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: run.log_metrics("loss"), "metrics is 'loss'. Pass a dict of numbers"),
        (lambda run: run.log_metrics(["loss"]), "metrics is a list. Pass a dict of numbers"),
        (lambda run: run.log_metrics(None), "metrics is None. Pass a dict of numbers"),
        (lambda run: run.log_params("depth"), "params is 'depth'. Pass a dict"),
        (lambda run: run.set_tags(["a"]), "tags is a list. Pass a dict"),
        (lambda run: run.log_artifact(3), "local_path is 3. Pass the path"),
        (lambda run: run.log_artifacts("nowhere"), "No such file"),
        (lambda run: run.log_model(object()), "save_model(model, path)"),
        (lambda run: run.log_input(pd.DataFrame()), "mlflow.data.from_pandas(df)"),
        (lambda run: run.log_text("text", 3), "artifact_file is 3. Pass a path"),
        (lambda run: run.log_text("text", "../up.txt"), "up.txt"),
        (lambda run: run.log_dict({}, ""), "the file has no name"),
        (lambda run: run.log_figure("figure", "a.png"), "figure"),
        (lambda run: run.log_image("image", "a.png"), "image"),
        (lambda run: run.log_image(np.zeros((2, 2))), "artifact_file"),
        (lambda run: run.log_table([1], "a.json"), "DataFrame or a dictionary"),
        (lambda run: run.log_table({"a": [1]}, "a.csv"), ".json"),
    ],
)
def test_what_cannot_be_logged_is_named_in_a_warning_and_the_rest_is_logged(
    server: FakeMlflow,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[Any], None],
    words: str,
) -> None:
    with _run(process) as run:
        call(run)
        run.log_metric("after", 1.0)
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "mlflow_iap_callbacks"]
    assert words in warning
    assert "has no attribute" not in warning
    assert server.run(run.key).curve("after") == [(0, 1.0)]


class _Unconvertible:
    """A value like a tensor of several numbers, for which ``float`` raises an error of its own."""

    def __float__(self) -> float:
        raise RuntimeError

    def __repr__(self) -> str:
        return "tensor"


@pytest.mark.parametrize("name", [0, None, (1, 2), b"loss", 0.5, _Unconvertible()], ids=repr)
def test_a_metric_whose_name_is_no_text_is_logged_under_its_text(
    server: FakeMlflow, process: VirtualProcess, name: Any
) -> None:
    run = _run(process)
    run.log_metrics({name: 0.5, "other": 1})
    assert run.flush()
    (found,) = server.runs.values()
    assert {value for *_, value in found.points} == {0.5, 1.0}


def test_a_metric_that_is_too_large_for_a_float_keeps_no_other_one_from_delivery(
    server: FakeMlflow, process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    run = _run(process)
    run.log_metrics({"loss": 0.5, "huge": 10**400, "large": 2**70}, step=1)
    assert run.flush()
    (found,) = server.runs.values()
    assert {point[::3] for point in found.points} == {("loss", 0.5), ("large", 2.0**70)}
    assert "'huge'" in caplog.text


def test_a_metric_whose_name_has_a_line_break_is_logged_apart_from_the_others(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = _run(process)
    run.log_metrics({"a\nb": 0.5, "a": 1, "b": 2.0})
    assert run.flush()
    (found,) = server.runs.values()
    values = {value: name for name, *_, value in found.points}
    assert {1.0: values[1.0], 2.0: values[2.0]} == {1.0: "a", 2.0: "b"}
    assert "a\nb" in found.tags.values()


@pytest.mark.parametrize(
    "value", [{1: 2}, [[0.5]], {"a": {None: 1}}, "high", b"1", _Unconvertible()], ids=repr
)
def test_a_metric_that_is_not_a_number_keeps_no_other_record_from_delivery(
    server: FakeMlflow, process: VirtualProcess, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    run = _run(process)
    run.log_metrics({"odd": value, "loss": 0.5})
    run.log_metric("later", 0.25)
    run.flush()
    (found,) = server.runs.values()
    assert [point[::3] for point in found.points if point[0] != "odd"] == [
        ("loss", 0.5),
        ("later", 0.25),
    ]
    assert value == b"1" or "'odd'" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(ZeroDivisionError(), "FAILED"), (KeyboardInterrupt(), "FAILED"), (TrialPruned(), "KILLED")],
)
def test_an_exception_in_a_with_block_ends_the_run_and_is_raised(
    server: FakeMlflow, process: VirtualProcess, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), _run(process) as run:
        raise error
    assert server.run(run.key).status == status


def test_an_existing_run_is_continued_and_ended(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    with _run(process) as first:
        first.log_metric("loss", 2.0, step=0)
    run_id = first.run_id()
    statuses = []
    server.on_request = lambda method: statuses.append(server.runs[run_id].status)
    with IAPRun(run_id, client=process.client, tags={"again": "yes"}) as again:
        again.log_metric("loss", 1.0, step=1)
    logged = server.runs[run_id]
    assert "RUNNING" in statuses
    assert (logged.status, logged.tags["again"]) == ("FINISHED", "yes")
    assert logged.curve("loss") == [(0, 2.0), (1, 1.0)]
    assert len(server.runs) == 1


def test_a_run_has_the_parent_it_was_given(server: FakeMlflow, process: VirtualProcess) -> None:
    with _run(process) as parent, _run(process, parent_run_id=parent.run_id()) as child:
        pass
    assert server.run(child.key).tags["mlflow.parentRunId"] == parent.run_id()


def test_a_callbacks_run_stays_open_after_a_with_block(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run: IAPRun = process.begin()
    with run:
        run.log_metric("loss", 1.0)
    assert run.flush()
    assert server.run(run.key).status == "RUNNING"


def test_a_step_in_place_of_the_timestamp_causes_one_warning(
    process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    run_module._warn_of_timestamps_like_steps.cache_clear()
    run = _run(process)
    run.log_metric("loss", 1.0, 1_700_000_000_000)
    run.log_metric("loss", 1.0, 1000, step=1)
    assert caplog.records == []
    for step in range(3):
        run.log_metric("loss", 1.0, step)
    (record,) = caplog.records
    assert "step=STEP" in record.getMessage()


def test_a_handle_still_has_its_url_if_it_is_logged_to_after_its_end(
    process: VirtualProcess,
) -> None:
    with _run(process) as run:
        pass
    url = run.url
    run.set_tag("late", True)
    assert run.flush()
    assert run.url == url is not None


def test_a_copy_in_another_process_logs_to_the_same_run(
    server: FakeMlflow, process: VirtualProcess, new_process: Callable[[], VirtualProcess]
) -> None:
    run = _run(process)
    run.log_metric("loss", 1.0)
    assert run.flush()
    copied = pickle.dumps(run)
    other = new_process()
    copy = pickle.loads(copied)
    copy.log_metric("loss", 2.0, step=1)
    assert copy.flush()
    other.close()
    assert server.run(run.key).curve("loss") == [(0, 1.0), (1, 2.0)]


def test_flush_is_true_if_everything_was_delivered(process: VirtualProcess) -> None:
    run = _run(process)
    run.log_metric("loss", 1.0)
    result = run.flush()
    assert result
    assert result == IAPFlushResult(delivered=2, waiting=0, refused=0)


def test_flush_is_false_while_records_wait(server: FakeMlflow, process: VirtualProcess) -> None:
    server.is_away = True
    run = _run(process)
    run.log_metric("loss", 1.0)
    result = run.flush(5.0)
    assert not result
    assert result == IAPFlushResult(delivered=0, waiting=2, refused=0)
    server.is_away = False
    assert run.flush() == IAPFlushResult(delivered=2, waiting=0, refused=0)


def test_flush_is_true_if_another_thread_logs_more_meanwhile(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = _run(process)
    run.log_metric("loss", 1.0)
    server.on_request = lambda method: run.log_metric("loss", 2.0, step=len(server.calls))
    result = run.flush()
    server.on_request = lambda method: None
    assert (bool(result), result.waiting) == (True, 0)
    assert process.sender.waiting > 0


def test_flush_is_false_if_mlflow_refused_something(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = _run(process)
    run.log_param("depth", 1)
    assert run.flush()
    run.log_param("depth", 2)
    result = run.flush()
    assert not result
    assert (result.waiting, result.refused) == (0, 1)


def test_flush_is_false_if_the_run_does_not_exist(process: VirtualProcess) -> None:
    process.enter()
    run = IAPRun("0123456789abcdef" * 2, client=process.client)
    run.log_metrics({"loss": 1.0})
    result = run.flush()
    assert not result
    assert (result.delivered, result.waiting) == (0, 0)
    assert result.refused > 0


def test_the_link_is_printed_once_as_soon_as_it_is_known(
    server: FakeMlflow, process: VirtualProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(process, run_name="mine")
    run.log_metric("loss", 1.0)
    assert (run.url, capsys.readouterr().err) == (None, "")
    process.deliver()
    run.log_metric("loss", 0.5, step=1)
    assert capsys.readouterr().err == f"Run mine: {run.url}\n"
    page = f"experiments/{server.run(run.key).experiment_id}/runs/{run.run_id()}"
    assert run.url == f"{server.uri}/#/{page}?workflowType=machine_learning"
    run.finish()
    run.flush()
    assert capsys.readouterr().err == ""


def test_the_link_is_printed_at_the_end_of_a_short_run(
    process: VirtualProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    with _run(process) as run:
        pass
    assert capsys.readouterr().err == f"Run: {run.url}\n"


def test_trials_print_no_links(process: VirtualProcess, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunWriter(process.client, "experiment")
    run.finish()
    run.flush()
    assert capsys.readouterr().err == ""


def test_in_a_notebook_a_handle_shows_its_link(process: VirtualProcess) -> None:
    run = _run(process)
    assert "not created yet" in run._repr_html_()
    run.flush()
    assert f"<a href='{run.url}'" in run._repr_html_()
