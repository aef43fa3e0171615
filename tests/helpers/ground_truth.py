"""Notes what a sweep logs, and compares it point by point with what MLflow has."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, ViewType

_KEY, _ENDED = "mlflow_iap.run_key", "mlflow_iap.ended"
# A dead run ends when its journal was last written to, by the file system's clock.
_CLOCK_TICK_MS, _MOST_MS_LATE = 50, 2000
# What LightGBM's callback adds to its curves, apart from the best values.
_OWN = {"seconds_per_iteration", "stopped_iteration"}
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


class Notes:
    """A sweep's notes: a call is about to be made, a call has returned.

    Each line is one system call, so that after a kill it is complete or missing.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count()

    def about(self, what: str, key: str, content: Any) -> int:
        """Note a call before it is made; return its number."""
        number = next(self._numbers)
        self._write("about", number, what, key, content)
        return number

    def done(self, number: int) -> None:
        """Note that the call has returned."""
        self._write("done", number)

    @contextmanager
    def around(self, what: str, key: str, content: Any) -> Iterator[None]:
        number = self.about(what, key, content)
        yield
        self.done(number)

    def begun(self, key: str, start_ms: int) -> None:
        """Note that a run was started; its key is known only now."""
        self.done(self.about("run", key, start_ms))

    def killed(self) -> None:
        """Note that the sweep was killed; called from outside."""
        self._write("killed", 0)

    def _write(self, kind: str, number: int, *more: Any) -> None:
        line = json.dumps([kind, number, time.time_ns() // 1_000_000, *more])
        os.write(self._file, line.encode() + b"\n")


@dataclass
class Call:
    """A call that began after ``earliest`` and, if it returned, returned before ``latest``."""

    content: Any
    earliest: int
    latest: int | None = None


@dataclass
class Noted:
    """A run, as noted by its sweep."""

    start_ms: int
    points: dict[tuple[str, int], Call] = field(default_factory=dict)
    end: Call | None = None
    killed: int | None = None


def read(paths: Iterable[Path]) -> dict[str, Noted]:
    """What was noted, by run key."""
    noted: dict[str, Noted] = {}
    for path in paths:
        calls: dict[int, list[Call]] = {}
        runs: list[Noted] = []
        for line in path.read_text().splitlines():
            kind, number, now, *more = json.loads(line)
            if kind == "killed":
                for run in runs:
                    run.killed = now
                continue
            if kind == "done":
                for call in calls[number]:
                    call.latest = now
                continue
            what, key, content = more
            calls[number] = []
            if what == "run":
                noted[key] = Noted(content)
                runs.append(noted[key])
            elif what == "end":
                noted[key].end = end = Call(content, now)
                calls[number].append(end)
            else:
                step, values = content
                for name, value in values.items():
                    call = noted[key].points[name, step] = Call(value, now)
                    calls[number].append(call)
    return noted


@dataclass
class Comparison:
    """The differences, and the numbers of what was compared."""

    wrong: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)


def compare(store: MlflowClient, noted: Mapping[str, Noted], *, most_unknown: int) -> Comparison:
    """Compare what MLflow has with what was noted, in both directions.

    Args:
        store: the store with MLflow's runs.
        noted: the notes, by run key.
        most_unknown: number of runs that a kill may have left between their start and its note.
    """
    result = Comparison()
    ids = [experiment.experiment_id for experiment in store.search_experiments(max_results=1000)]
    runs: dict[str, Run] = {}
    for run in store.search_runs(ids, run_view_type=ViewType.ALL, max_results=50_000):
        key = run.data.tags.get(_KEY, "none")
        if key in runs:
            both = (runs[key].info.run_id, run.info.run_id)
            result.wrong.append(f"run {key} is there twice: {both}")
        runs[key] = run
    for key in noted.keys() - runs.keys():
        result.wrong.append(f"run {key} is not there")
    studies = {key for key, run in runs.items() if _is_of_a_study(run)}
    for key in studies:
        result.figures["studies"] += 1
        _compare_study(store, runs[key], result)
    for key in runs.keys() - noted.keys() - studies:
        result.figures["runs begun and not noted"] += 1
        if runs[key].data.metrics or runs[key].info.status != "FAILED":
            result.wrong.append(f"run {key}, which nobody noted, is {runs[key].info.status}")
    if result.figures["runs begun and not noted"] > most_unknown:
        result.wrong.append(f"{result.figures} with at most {most_unknown} possible")
    for key in noted.keys() & runs.keys():
        result.figures["runs"] += 1
        _compare_run(runs[key], noted[key], result)
        _compare_points(store, runs[key], noted[key], result)
    return result


def _is_of_curves(point: Metric, curves: Mapping[tuple[str, int], Call]) -> bool:
    """Whether what LightGBM's callback adds agrees with the noted curves."""
    if point.key.startswith("best-"):
        call = curves.get((point.key.removeprefix("best-"), point.step))
        return call is not None and point.value == call.content
    steps = {step for _, step in curves}
    if point.key == "stopped_iteration":
        return point.step == max(steps) == point.value - 1
    return point.step in steps


def _is_of_a_study(run: Run) -> bool:
    return "mlflow_iap.study" in run.data.tags and "mlflow_iap.trial" not in run.data.tags


def _compare_study(store: MlflowClient, run: Run, result: Comparison) -> None:
    """Check that a study's run has ended, and has each point of its curve once."""
    is_cut = _ENDED in run.data.tags
    if run.info.status != ("FAILED" if is_cut else "FINISHED"):
        result.wrong.append(f"the study's run {run.info.run_id} is {run.info.status}, {is_cut=}")
    curve = store.get_metric_history(run.info.run_id, "best_value_so_far")
    steps = [point.step for point in curve]
    if len(set(steps)) < len(steps):
        result.wrong.append(f"the study's run {run.info.run_id} has steps twice: {steps}")


def _compare_run(run: Run, noted: Noted, result: Comparison) -> None:
    key = run.data.tags[_KEY]
    if run.info.start_time != noted.start_ms:
        result.wrong.append(f"run {key} starts at {run.info.start_time}, not {noted.start_ms}")
    end = noted.end
    is_cut = _ENDED in run.data.tags
    if end is None or (is_cut and end.latest is None):
        result.figures["runs whose process died"] += 1
        if run.info.status != "FAILED" or not is_cut:
            result.wrong.append(f"run {key} was left open and is {run.info.status}")
        logged = (call.earliest for call in noted.points.values() if call.latest is not None)
        last = max(logged, default=noted.start_ms)
        late = run.info.end_time - (noted.killed or 0)
        result.figures["most ms from a kill to its runs' end"] = max(
            result.figures["most ms from a kill to its runs' end"], late
        )
        if late > _MOST_MS_LATE or run.info.end_time < last - _CLOCK_TICK_MS:
            result.wrong.append(
                f"run {key}, written to at {last} and killed at {noted.killed}, ends {late} ms late"
            )
        return
    result.figures[f"trials {end.content['state']}"] += 1
    seen = {
        "params": run.data.params,
        "state": run.data.tags.get("state"),
        "status": run.info.status,
        "end_ms": run.info.end_time,
        "is_cut": is_cut,
    }
    expected = {**end.content, "status": _STATUS[end.content["state"]], "is_cut": False}
    del expected["values"]
    if seen != expected:
        result.wrong.append(f"run {key} is {seen}, not {expected}")


def _compare_points(store: MlflowClient, run: Run, noted: Noted, result: Comparison) -> None:
    key = run.data.tags[_KEY]
    expected = dict(noted.points)
    if noted.end is not None:
        moment = noted.end.content["end_ms"]
        for name, value in noted.end.content["values"].items():
            expected[name, 0] = Call(value, moment, moment if noted.end.latest else None)
    own = _OWN | {f"best-{name}" for name, _ in noted.points}
    seen = set()
    for name in run.data.metrics:
        for point in store.get_metric_history(run.info.run_id, name):
            place = (name, point.step)
            call = expected.get(place)
            if place in seen:
                result.wrong.append(f"run {key} has {place} twice: {point}")
            elif name in own:
                if not _is_of_curves(point, noted.points):
                    result.wrong.append(f"run {key} has {point}, which none of its curves has")
            elif call is None or point.value != call.content:
                result.wrong.append(f"run {key} has {point}, noted was {call}")
            elif not call.earliest <= point.timestamp <= (call.latest or point.timestamp):
                result.wrong.append(f"run {key} has {point} at another time than {call}")
            seen.add(place)
    result.figures["points"] += len(seen)
    seen = {place for place in seen if place[0] not in own}
    certain = {place for place, call in expected.items() if call.latest is not None}
    result.figures["points logged as the kill came"] += len(seen - certain)
    for place in certain - seen:
        result.wrong.append(f"run {key} has no {place}: {expected[place]}")
