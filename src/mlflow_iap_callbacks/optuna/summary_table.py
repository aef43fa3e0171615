"""The table that ``IAPMLflowCallback.summary`` returns, for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..delivery.sender import Sender
from .study_run import StudyRun


@dataclass(frozen=True)
class Summary:
    """A table of two columns; ``print`` shows it as text, a notebook as HTML."""

    rows: Mapping[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=0)
        return "\n".join(f" {name:{width}}  {text}".rstrip() for name, text in self.rows.items())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.rows.items()
        )
        return f"<table>{cells}</table>"


def summary_of(study_runs: Iterable[StudyRun], sender: Sender) -> Summary:
    """Summarize studies and the delivery of their records."""
    rows = {}
    for study_run in study_runs:
        name = f"study {study_run.study.study_name}"
        try:
            counts, best = study_run.counts(), study_run.best()
        except Exception as error:  # noqa: BLE001 - storages raise what their databases raise
            rows[name] = f"not in its storage any more ({' '.join(str(error).split()):.100})"
        else:
            rows[name] = ", ".join(f"{number} {state}" for state, number in counts.items())
            if best:
                rows["best"] = best
        if study_run.link:
            rows["look"] = study_run.link
    rows["delivered"] = f"{sender.delivered} records to {sender.server}"
    rows["waiting"] = f"{sender.waiting} records"
    refused = sum(outbox.refusals() for outbox in sender.outboxes)
    rows["refused"] = f"{refused}" + (" (`mlflow-iap status` says why)" if refused else "")
    return Summary(rows)
