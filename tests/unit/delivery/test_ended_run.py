"""A run that is logged at once contains what a handle would have logged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.ended_run import Results, log_ended_run
from mlflow_iap_callbacks.delivery.run_creation import Mode
from mlflow_iap_callbacks.limits import MAX_METRICS, MAX_TAGS
from mlflow_iap_callbacks.outbox.journal_content import messages_of
from virtual_process import VirtualClock, VirtualProcess

_STARTED, _ENDED = 1_700_000_000_000, 1_700_000_060_000


def _log_at_once(
    process: VirtualProcess, key: str, tags: Mapping[str, Any], results: Results, **start: Any
) -> None:
    process.enter()
    log_ended_run(
        process.client,
        "name:experiment",
        results,
        key=key,
        tags=tags,
        status="KILLED",
        start_time=_STARTED,
        end_time=_ENDED,
        **start,
    )


def _log_with_a_handle(
    process: VirtualProcess, key: str, tags: Mapping[str, Any], results: Results, **start: Any
) -> None:
    suggestions, metrics, curves = results
    run = process.begin(key=key, tags=tags, mode=Mode.NEW, start_time=_STARTED, **start)
    run.log_suggestions(suggestions)
    run.log_metrics(metrics, timestamp=_ENDED)
    for name, points in curves.items():
        run.log_curve(name, points, timestamp=_ENDED)
    run.finish("KILLED", end_time=_ENDED)


def _delivered(server: FakeMlflow, process: VirtualProcess, key: str) -> Any:
    process.deliver()
    run = server.run(key)
    tags = {name: text for name, text in run.tags.items() if text != key}
    return run.name, run.status, run.start_time, run.end_time, run.params, run.points, tags


def _assert_same(
    server: FakeMlflow,
    process: VirtualProcess,
    tags: Mapping[str, Any],
    results: Results,
) -> None:
    start = {"run_name": "given"}
    _log_at_once(process, "at once", tags, results, **start)
    _log_with_a_handle(process, "with a handle", tags, results, **start)
    expected = _delivered(server, process, "with a handle")
    assert _delivered(server, process, "at once") == expected


class _Odd:
    def __str__(self) -> str:
        return "odd"


class _Failing:
    def __str__(self) -> str:
        raise RuntimeError


_VALUES = {
    "text": "a",
    "not ASCII": "größe",
    "no UTF-8": "\ud800",
    "long": "x" * 10_000,
    "numbers": 0.1,
    "NumPy": np.float32(0.1),
    "NumPy's double": np.float64(0.1),
    "integer": 7,
    "large integer": 10**30,
    "integer of too many digits": 10**5000,
    "True": True,
    "None": None,
    "NaN": float("nan"),
    "infinity": float("-inf"),
    "minus zero": -0.0,
    "bytes": b"a",
    "list": [1, "a"],
    "tuple": (1, 2),
    "dict": {1: 2},
    "time": datetime(2026, 1, 2, 3, 4, 5),
    "object": _Odd(),
    "object without text": _Failing(),
}


@pytest.mark.parametrize("value", _VALUES.values(), ids=_VALUES)
def test_values_of_any_kind_arrive_as_a_handle_logs_them(
    server: FakeMlflow, process: VirtualProcess, value: object
) -> None:
    _assert_same(server, process, {"tag": value, "other": 1}, ({"x": value, "y": 2}, {}, {}))


@pytest.mark.parametrize("name", ["größe", "\ud800", 5, None, (1, 2)], ids=ascii)
def test_names_of_any_kind_arrive_as_a_handle_logs_them(
    server: FakeMlflow, process: VirtualProcess, name: Any
) -> None:
    _assert_same(server, process, {name: 1}, ({name: 1}, {name: 0.5}, {}))


@pytest.mark.parametrize("value", [1, True, 2**70, np.float32(0.1), float("inf"), "a"], ids=str)
def test_metrics_of_any_kind_arrive_as_a_handle_logs_them(
    server: FakeMlflow, process: VirtualProcess, value: Any
) -> None:
    _assert_same(server, process, {}, ({}, {"m": value, "n": 0.5}, {}))


@pytest.mark.parametrize("number", [0, 1, 96, 97, 100, 101, 250])
def test_any_number_of_tags_params_and_metrics_arrives(
    server: FakeMlflow, process: VirtualProcess, number: int
) -> None:
    names = [f"n{each}" for each in range(number)]
    curves = {"curve": [(step, step / 7) for step in range(number * 10)]} if number else {}
    results = (dict.fromkeys(names, 1), dict.fromkeys(names, 0.5), curves)
    _assert_same(server, process, dict.fromkeys(names, "t"), results)


@pytest.mark.parametrize("number", [100, 101, 1000, 1001])
@pytest.mark.parametrize("kind", ["start", "suggestions", "metrics", "curve"])
def test_no_record_has_more_than_fits_in_one_request(
    process: VirtualProcess, kind: str, number: int
) -> None:
    given: dict[str, dict[str, float]] = {
        each: {} for each in ("start", "suggestions", "metrics", "curve")
    }
    given[kind] = {f"n{each}": 0.5 for each in range(number)}
    curves = {"curve": [*enumerate(given["curve"].values())]}
    results = (given["suggestions"], given["metrics"], curves)
    _log_at_once(process, "key", given["start"], results)
    (run,) = process.sender.outbox.collect()
    sizes = {"start": 0, "tags": 0, "suggestions": 0, "metrics": 0, "curve": 0}
    while records := process.sender.outbox.read(run, 1000):
        for record in records:
            content = record.content["tags"] if record.kind == "start" else record.content
            found = len(content[2] if record.kind in ("metrics", "curve") else content)
            assert found <= (MAX_METRICS if record.kind in ("metrics", "curve") else MAX_TAGS)
            sizes[record.kind] = sizes.get(record.kind, 0) + found
        process.sender.outbox.settle(run, records)
    sizes["start"] += sizes.pop("tags")
    assert sizes[kind] >= number


def test_the_name_in_the_tags_is_the_name_of_the_run(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    tags = {"mlflow.runName": "of the tags", "a": 1}
    _assert_same(server, process, tags, ({}, {}, {}))
    assert server.run("at once").name == "of the tags"


_texts = st.text(st.characters(codec="utf-8"), max_size=20)
_plain = st.one_of(_texts, st.integers(), st.floats(), st.booleans(), st.none())
_names = st.text("abcdefghijklmno", min_size=1, max_size=5)


@given(
    tags=st.dictionaries(_names, _plain, max_size=5),
    suggestions=st.dictionaries(_names, _plain, max_size=5),
    metrics=st.dictionaries(_names, st.floats(allow_nan=False), max_size=5),
    points=st.dictionaries(st.integers(0, 2**40), st.floats(allow_nan=False), max_size=5),
)
def test_plain_values_arrive_as_a_handle_logs_them(
    tags: dict[str, Any],
    suggestions: dict[str, Any],
    metrics: dict[str, float],
    points: dict[int, float],
) -> None:
    server = FakeMlflow()
    process = VirtualProcess(server, VirtualClock())
    curves = {"curve": sorted(points.items())} if points else {}
    _assert_same(server, process, tags, (suggestions, metrics, curves))
    process.close()


def test_a_kill_leaves_all_records_of_the_run_or_none(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    _log_at_once(process, "key", {"a": 1}, ({"x": 0.5}, {"m": 1.0}, {}))
    outbox = process.sender.outbox
    assert outbox.path is not None
    (file,) = outbox.path.parent.glob("*.intake")
    whole = file.read_bytes()
    numbers = set()
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        numbers.add(len([*messages_of(outbox.path, 0)]))
    assert numbers == {0, 4}


def test_a_run_goes_to_a_new_journal_if_another_thread_has_just_closed_the_old_one(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    closed = process.sender.outbox
    closed.intake.close()
    with pytest.raises(OSError, match="the journal is closed"):
        _log_at_once(process, "key", {}, ({}, {}, {}))
    process.sender._own = None
    _log_at_once(process, "key", {}, ({}, {}, {}))
    process.deliver()
    assert server.run("key").status == "KILLED"
