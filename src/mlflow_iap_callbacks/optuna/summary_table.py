"""The rows about studies in the table that ``IAPMLflowCallback.summary`` returns."""

from __future__ import annotations

from collections.abc import Iterable

from ..delivery.sender import Sender
from ..delivery.summary import Summary, delivery_rows
from .study_run import StudyRun


def summary_of(study_runs: Iterable[StudyRun], sender: Sender) -> Summary:
    """Summarize studies and the delivery of their records."""
    rows: dict[str, str] = {}
    for study_run in study_runs:
        counts = study_run.counts()
        states = ", ".join(f"{number} {state}" for state, number in counts.items())
        name = study_run.study.study_name
        # The names of the first study's rows are short.
        of_study = f" of {name}" if rows else ""
        rows[f"study {name}"] = states
        if study_run.best():
            rows[f"best{of_study}"] = study_run.best()
        if study_run.link:
            rows[f"look{of_study}"] = study_run.link
    return Summary(rows | delivery_rows(sender))
