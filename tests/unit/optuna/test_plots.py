"""What the process that draws gets and writes; its plots are in the end-to-end tests."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mlflow_iap_callbacks.optuna import plots
from optuna_helpers import new_study


@pytest.fixture
def study() -> optuna.Study:
    """Trials of every state, with values, names and attributes that are hard to write."""
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


def test_the_other_process_has_the_ended_trials_as_they_were(study: optuna.Study) -> None:
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


def test_that_the_process_fails_is_an_error_with_its_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ncat >/dev/null\necho first >&2\necho no such thing >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with (
        pytest.raises(OSError, match=r"plots could not be drawn: no such thing"),
        plots.draw(new_study(), ["value"]),
    ):
        pass
