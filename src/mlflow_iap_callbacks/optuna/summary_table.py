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
        name = study_run.study.study_name
        # The names of the first study's rows are short.
        of_study = f" of {name}" if rows else ""
        try:
            counts, best = study_run.counts(), study_run.best()
        except Exception as error:  # noqa: BLE001 - storages raise what their databases raise
            problem = " ".join(str(error).split())
            rows[f"study {name}"] = f"not in its storage any more ({problem:.100})"
        else:
            states = (f"{number} {state}" for state, number in counts.items())
            rows[f"study {name}"] = ", ".join(states)
            if best:
                rows[f"best{of_study}"] = best
        if study_run.link:
            rows[f"link{of_study}"] = study_run.link
    return Summary(rows | delivery_rows(sender))
