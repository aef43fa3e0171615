"""The files with all trials of a study: a table, and the study itself, to resume it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .packed_study import unpacked

TABLE, STUDY = "trials.csv", "study.log"


def write_table(content: Mapping[str, Any], path: Path) -> None:
    """Write a row for each trial of a packed study."""
    kinds = ("params", "user_attrs")
    columns = {
        (kind, name): None for kind in kinds for trial in content["trials"] for name in trial[kind]
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["number", "state", *content["names"], "start", "complete"]
            + [f"{kind}_{name}" for kind, name in columns]
        )
        for trial in content["trials"]:
            values = trial["values"] or [""] * len(content["names"])
            cells = [trial["number"], trial["state"], *values, trial["start"], trial["complete"]]
            rows.writerow(cells + [trial[kind].get(name, "") for kind, name in columns])


def write_study(content: Mapping[str, Any], path: Path) -> None:
    """Write a packed study as the file of a ``JournalStorage``, from which Optuna resumes it.

    A trial that is still running is a failed one in the resumed study.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import BaseJournalBackend
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    class Lines(BaseJournalBackend):
        """Keeps the lines in memory; a file would be locked and synced for each."""

        def __init__(self) -> None:
            self.lines: list[dict[str, Any]] = []

        def read_logs(self, log_number_from: int) -> Sequence[dict[str, Any]]:
            return self.lines[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            # As they are read from the file.
            self.lines += json.loads(json.dumps(logs))

    lines = Lines()
    storage = JournalStorage(lines)
    directions = [StudyDirection[direction.upper()] for direction in content["directions"]]
    study_id = storage.create_new_study(directions, content["name"])
    for name, value in content["user_attrs"].items():
        storage.set_study_user_attr(study_id, name, value)
    for name, value in content["system_attrs"].items():
        storage.set_study_system_attr(study_id, name, value)
    for trial in unpacked(content):
        if trial.state == TrialState.RUNNING:
            trial.state, trial.datetime_complete = TrialState.FAIL, datetime.now()
        storage.create_new_trial(study_id, trial)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines.lines)
