"""The input and output of the plot process; the plots are in the end-to-end tests."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mlflow_iap_callbacks.optuna import plots
from optuna_helpers import new_study


@pytest.fixture
def study() -> optuna.Study:
    """Trials in every state, with values, names and attributes that are hard to serialise."""
    study = new_study()
    study.add_trial(
        create_trial(
            params={"c": None, "i": 3},
            distributions={
                "c": optuna.distributions.CategoricalDistribution([None, True, "ü", 1.5]),
                "i": optuna.distributions.IntDistribution(1, 1000, log=True),
            },
            value=1.5,
            user_attrs={"note": "a,b\n0", "odd": {"a": math.nan}, "object": object},
            system_attrs={"constraints": [0.0, 1.0]},
        )
    )
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    study.enqueue_trial({"x": 1})
    return study


def _content(study: optuna.Study, *names: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(plots._packed(study, names or ["value"]))
    return content


def test_the_plot_process_gets_the_ended_trials_unchanged(study: optuna.Study) -> None:
    again = plots._unpacked(_content(study))
    assert len(again.trials) == 3
    for before, after in zip(study.trials, again.trials, strict=False):
        assert (after.state, after.values) == (before.state, before.values)
        assert (after.params, after.distributions) == (before.params, before.distributions)
    assert again.trials[0].system_attrs["constraints"] == [0.0, 1.0]
    assert again.directions == study.directions


def test_the_table_has_a_row_for_each_trial(study: optuna.Study, tmp_path: Path) -> None:
    plots._write_table(_content(study, "loss"), tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
    assert [row["number"] for row in rows] == list("01234")
    assert [row["loss"] for row in rows] == ["1.5", "", "", "", ""]
    assert (rows[0]["params_i"], rows[0]["user_attrs_note"]) == ("3", "a,b\n0")
    began = study.trials[3].datetime_start
    assert began is not None
    assert [row["start"] for row in rows[3:]] == [began.isoformat(), ""]
    assert [row["complete"] for row in rows[3:]] == ["", ""]


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Replaces Python by a shell script."""

    def replace(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace


def test_a_failed_process_is_an_error_with_its_last_line_and_the_next_study_gets_a_new_one(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python(
        f"echo begun >> {tmp_path}/begun; read given\n"
        "echo first >&2; echo no such thing >&2; exit 1"
    )
    with plots.PlotProcess() as process:
        for _ in range(2):
            with pytest.raises(OSError, match=r"plots could not be drawn: no such thing"):
                process.draw(new_study(), ["value"], lambda: 60.0)
    assert (tmp_path / "begun").read_text() == "begun\nbegun\n"


def test_one_process_draws_several_studies(python: Callable[[str], None], tmp_path: Path) -> None:
    python(
        f"echo begun >> {tmp_path}/begun\n"
        'while read given; do mkdir "$given.part"; cp "$given" "$given.part/given"\n'
        'mv "$given.part" "${given%.json}"; done'
    )
    studies = [new_study(), new_study()]
    studies[1].add_trial(create_trial(value=1.0, user_attrs={"long": "a" * 1_000_000}))
    with plots.PlotProcess() as process:
        folders = [process.draw(study, ["value"], lambda: 60.0) for study in studies]
        given = [json.loads((folder / "given").read_text()) for folder in folders]
    assert given == [_content(study) for study in studies]
    assert (tmp_path / "begun").read_text() == "begun\n"
    assert not any(folder.exists() for folder in folders)


def test_the_process_is_killed_when_no_time_is_left(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    python(f"echo $$ > {pid}\nexec sleep 600")
    with plots.PlotProcess() as process, pytest.raises(plots.OutOfTime):
        process.draw(new_study(), ["value"], lambda: 0.0 if pid.exists() else 60.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_no_process_is_started_if_nothing_is_drawn(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python(f"echo begun >> {tmp_path}/begun")
    with plots.PlotProcess():
        pass
    assert not (tmp_path / "begun").exists()
