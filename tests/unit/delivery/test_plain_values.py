"""What MLflow gets for each kind of unusual value: the value, a converted one, or nothing."""

from __future__ import annotations

import datetime
import math
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.entities import RunStatus

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.plain_values import as_number, start_of_text
from mlflow_iap_callbacks.limits import MAX_PARAM_LENGTH, MAX_TAG_LENGTH
from mlflow_iap_callbacks.outbox import journal_folder
from own_log import said_by_us
from virtual_process import VirtualProcess

_Any = Any


def _folder(path: Path, fill: Callable[[], None]) -> None:
    path.mkdir()
    fill()


class _Status(Enum):
    FAILED = 1


class _Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = object.__repr__


def _is_delivered(process: VirtualProcess) -> bool:
    process.deliver_for(10.0)
    return process.sender.waiting == 0 and process.sender.outbox.refusals() == 0


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((status, status) for status in ("FINISHED", "FAILED", "KILLED")),
        ("failed", "FAILED"),
        (_Status.FAILED, "FAILED"),
        *((odd, "FINISHED") for odd in ("DONE", "RUNNING", "", None, 3, RunStatus.FAILED)),
    ],
)
@pytest.mark.parametrize("is_at_exit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_ends_with_a_valid_status(
    given: _Any,
    arrives: str,
    is_at_exit: bool,
    server: FakeMlflow,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = process.begin()
    if is_at_exit:
        run.finish_at_exit(given)
        process.sender.end_open_runs()
        arrives = "FAILED" if given is None else arrives
    else:
        run.finish(given)
    assert _is_delivered(process)
    assert server.run(run.key).status == arrives
    is_plain = str(getattr(given, "name", given)).upper() == arrives
    assert bool(said_by_us(caplog)) != (is_plain or (given is None and is_at_exit))


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((folder, folder or "") for folder in (None, "plots", "plots/2026", "ä b", "a.b")),
        *(
            ("plots/", "plots"),
            ("./plots", "plots"),
            ("a//b", "a/b"),
            ("a/../b", "b"),
            ("a\\b", "a/b"),
        ),
        *((".", ""), ("", ""), ("./", ""), (PurePosixPath("plots"), "plots")),
        *(
            (odd, None)
            for odd in ("..", "../up", "/abs", "a/../../up", "//abs", "C:/abs", "\\abs", 7)
        ),
    ],
)
def test_a_folder_outside_of_the_artifacts_is_rejected(
    given: _Any,
    arrives: str | None,
    server: FakeMlflow,
    process: VirtualProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a.txt").write_text("a")
    run = process.begin()
    run.log_artifact(tmp_path / "a.txt", given)
    run.log_metrics({"m": 1.0})
    run.finish()
    assert _is_delivered(process)
    found = server.run(run.key)
    assert found.artifacts == ({} if arrives is None else {f"{arrives}/a.txt".lstrip("/"): b"a"})
    assert (found.status, found.curve("m")) == ("FINISHED", [(0, 1.0)])
    assert len(said_by_us(caplog)) == (arrives is None)


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((name, name) for name in ("a.txt", "notes/a.txt", "a/b/c.txt", "ä b#%.txt")),
        *(("./a.txt", "a.txt"), ("a//b.txt", "a/b.txt"), ("a\\b.txt", "a/b.txt")),
        *((odd, None) for odd in ("", ".", "..", "../up.txt", "/abs.txt", None, 7)),
    ],
)
def test_a_text_is_stored_in_a_file_inside_the_artifacts(
    given: _Any,
    arrives: str | None,
    server: FakeMlflow,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = process.begin()
    run.log_text("text \ud800", given)
    run.finish()
    assert _is_delivered(process)
    assert server.run(run.key).artifacts == ({} if arrives is None else {arrives: b"text ?"})
    assert len(said_by_us(caplog)) == (arrives is None)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: os.mkfifo(path), id="a pipe"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="a device"),
        pytest.param(lambda path: path.symlink_to(path), id="a link to itself"),
        pytest.param(lambda path: None, id="nothing"),
        pytest.param(lambda path: _folder(path, lambda: os.mkfifo(path / "p")), id="a pipe inside"),
        pytest.param(
            lambda path: _folder(path, lambda: (path / "zero").symlink_to("/dev/zero")),
            id="a device inside",
        ),
    ],
)
def test_an_artifact_that_is_not_a_regular_file_is_rejected_at_once(
    make: _Any,
    server: FakeMlflow,
    process: VirtualProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make(tmp_path / "odd")
    run = process.begin()
    run.log_artifact(tmp_path / "odd")
    run.finish()
    assert _is_delivered(process)
    assert server.run(run.key).artifacts == {}
    assert len(said_by_us(caplog)) == 1


def test_a_folder_is_logged_without_journals_in_it(
    server: FakeMlflow, process: VirtualProcess, tmp_path: Path
) -> None:
    assert journal_folder.folder().is_relative_to(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    run = process.begin()
    run.log_artifact(tmp_path)
    run.finish()
    assert _is_delivered(process)
    assert server.run(run.key).artifacts == {f"{tmp_path.name}/a.txt": b"a"}


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((step, int(step)) for step in (0, -1, 2**63 - 1, True, 3.0, 3.7, Decimal(3))),
        *((kind(3), 3) for kind in (np.int64, np.uint8, np.float32, np.array, Fraction)),
        *((odd, None) for odd in ("3", math.nan, math.inf, 2**63, -(2**63), [3], object())),
    ],
)
@pytest.mark.parametrize("is_curve", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_arrives_as_an_integer_or_is_rejected(
    given: _Any,
    arrives: int | None,
    is_curve: bool,
    server: FakeMlflow,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = process.begin()
    if is_curve:
        run.log_curve("m", [(given, 0.5)])
    else:
        run.log_metrics({"m": 0.5}, step=given)
    run.finish()
    assert _is_delivered(process)
    assert server.run(run.key).curve("m") == ([] if arrives is None else [(arrives, 0.5)])
    assert all(type(step) is int for step, _ in server.run(run.key).curve("m"))
    assert len(said_by_us(caplog)) == (arrives is None)


@pytest.mark.parametrize(
    "given",
    [
        *(1_700_000_000_000, 1.7e12, np.int64(1_700_000_000_000), None, 0),
        *("2026", math.nan, 2**70, datetime.datetime(2026, 1, 1), object()),
    ],
)
def test_an_invalid_time_is_replaced_by_the_current_time(
    given: _Any, server: FakeMlflow, process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    run = process.begin(start_time=given)
    run.log_metrics({"m": 0.5}, timestamp=given)
    run.log_curve("n", [(0, 0.5)], timestamp=given)
    run.finish(end_time=given)
    assert _is_delivered(process)
    found = server.run(run.key)
    times = [found.start_time, found.end_time, *(point[2] for point in found.points)]
    assert all(type(time) is int for time in times)
    is_time = isinstance(given, int | float | np.integer) and 1e12 < given < 2e12
    assert (set(times) == {1_700_000_000_000}) == is_time
    assert len(said_by_us(caplog)) == (0 if is_time or not given else 4)


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((value, float(value)) for value in (1, 0.5, True, "0.5", math.inf, Decimal("0.5"))),
        *((kind(0.5), 0.5) for kind in (np.float32, np.array, np.float16)),
        (math.nan, None),
        *((odd, None) for odd in (None, "x", [1.0], np.zeros(2), {}, object(), 1j)),
    ],
)
def test_a_metric_arrives_as_a_number_or_is_left_out(
    given: _Any, arrives: float | None, server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    run.log_metrics({"m": given, "n": 1.0}, step=2)
    run.finish()
    process.deliver_for(10.0)
    assert process.sender.waiting == 0
    found = server.run(run.key)
    assert found.curve("m") == ([] if arrives is None else [(2, arrives)])
    assert (found.curve("n"), found.status) == ([(2, 1.0)], "FINISHED")


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((value, str(value)) for value in ("x", 1, None, [1, "a"], {"a": 1}, b"x", "ä\n")),
        ("", ""),
        ("\ud800", "?"),
        (np.float64(0.5), "0.5"),
        ("x" * 10_000, "x" * MAX_PARAM_LENGTH),
        (_Unprintable(), None),
        pytest.param(10**5000, None, id="more digits than Python's limit"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02 03:04:05.000006"),
    ],
)
def test_a_param_and_a_tag_arrive_as_text_or_are_left_out(
    given: _Any, arrives: str | None, server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin(tags={"first": given})
    run.log_params({"p": given})
    run.set_tags({"t": given})
    run.finish()
    assert _is_delivered(process)
    found = server.run(run.key)
    assert found.params == ({} if arrives is None else {"p": arrives})
    tag = str(given)[:MAX_TAG_LENGTH] if isinstance(given, str) and len(given) > 9 else arrives
    assert [found.tags.get(name) for name in ("first", "t")] == [tag, tag]
    assert found.status == "FINISHED"


@pytest.mark.parametrize("name", ["model", "a/b", "a:b", "v1.0", "100%", "it's", "", 7])
def test_a_model_gets_a_name_that_mlflow_accepts(
    name: _Any, server: FakeMlflow, process: VirtualProcess, tmp_path: Path
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "MLmodel").write_text("{}")
    run = process.begin()
    run.log_model(tmp_path / "saved", name)
    run.finish()
    assert _is_delivered(process)
    (model,) = server.models.values()
    assert model.name
    assert not set(model.name) & set("/:.%\"'")


def _dataset(**changes: str) -> _Any:
    fields = {"name": "n", "digest": "d", "source_type": "s", "source": "{}", **changes}
    return SimpleNamespace(to_dict=lambda: fields)


@pytest.mark.parametrize(
    ("field", "length", "kept"),
    [
        *(("name", 501, 500), ("digest", 37, 36), ("source_type", 37, 36)),
        *(("source", 65_536, 2), ("schema", 1_048_576, 0), ("profile", 16_777_216, 0)),
        *(("name", 500, 500), ("digest", 36, 36), ("source", 65_535, 65_535)),
    ],
)
def test_a_field_of_a_data_set_that_is_too_long_is_cut_or_left_out(
    field: str,
    length: int,
    kept: int,
    server: FakeMlflow,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = process.begin()
    run.log_input(_dataset(**{field: "x" * length}), context="c" * 501)
    run.finish()
    assert _is_delivered(process)
    (given,) = server.run(run.key).inputs.values()
    assert len(getattr(given.dataset, field) or "") == kept
    assert [len(tag.value) for tag in given.tags] == [500]
    assert len(said_by_us(caplog)) == (kept < length)


# the start of a long text


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        None,
        0.1,
        [],
        (1,),
        {"a": [1, {2}], (1, 2): "b"},
        Path("a"),
        np.arange(5000.0),
        list(range(3000)),
        tuple(range(3000)),
        {number: str(number) for number in range(3000)},
        {"a": {"b": [{"c": [0.5] * 3000}]}},
        [[0.5] * 10] * 300,
        set(range(3000)),
    ],
)
def test_the_start_of_a_text_is_that_of_the_whole_text(value: Any) -> None:
    for longest in (1, 100, 8000):
        assert start_of_text(value, longest) == str(value)[:longest]


class _Counted:
    """Counts how often it is converted to text."""

    def __init__(self) -> None:
        self.times = 0

    def __repr__(self) -> str:
        self.times += 1
        return "0.5"


@pytest.mark.parametrize(
    "around",
    [
        list,
        tuple,
        deque,
        lambda parts: {"history": list(parts)},
        lambda parts: dict(enumerate(parts)),
        lambda parts: defaultdict(list, {"history": list(parts)}),
        lambda parts: [[part] for part in parts],
        lambda parts: Counter(list(parts)[:1]) | dict(enumerate(parts)),
    ],
)
def test_only_as_much_of_a_collection_is_converted_as_is_kept(around: Callable[..., Any]) -> None:
    part = _Counted()
    text = start_of_text(around([part] * 10_000), 900)
    assert len(text) == 900
    assert part.times <= 300


def test_a_collection_that_contains_itself_has_a_text() -> None:
    inside: list[Any] = ["x" * 100]
    inside.append(inside)
    assert start_of_text(inside, 300) == str(inside)
    whole: dict[str, Any] = {"long": [0] * 3000}
    whole["again"] = whole
    assert start_of_text(whole, 20_000) == str(whole)


class _Tensor:
    """One element, for which ``float`` may have its reasons to fail."""

    def item(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    "value",
    [0.5, "0.5", np.float32(0.5), np.array(0.5), np.array([0.5]), np.array([[0.5]]), _Tensor()],
    ids=lambda value: type(value).__name__,
)
def test_a_number_and_an_array_of_one_element_are_numbers_as_in_mlflow(value: Any) -> None:
    assert as_number(value) == 0.5


@pytest.mark.parametrize("value", [None, 1j, {}, np.ones(2), "half"], ids=repr)
def test_anything_else_is_no_number(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        as_number(value)
