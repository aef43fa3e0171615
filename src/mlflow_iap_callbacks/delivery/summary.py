"""The table that ``summary`` of both callbacks returns, for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from ..plurals import counted
from .sender import Sender


@dataclass(frozen=True)
class Summary:
    """A table of two columns; ``print`` shows it as text, a notebook as HTML."""

    rows: Mapping[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=0)
        return "\n".join(f" {name:{width}}  {text}".rstrip() for name, text in self.rows.items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{_cell(text)}</td></tr>"
            for name, text in self.rows.items()
        )
        return f"<table>{cells}</table>"


def delivery_rows(sender: Sender) -> dict[str, str]:
    """Return the last rows of a summary, about the delivery."""
    refused = sum(outbox.refusals() for outbox in sender.outboxes)
    return {
        "delivered": f"{counted(sender.delivered, 'record')} to {sender.server}",
        "waiting": counted(sender.waiting, "record"),
        "refused": f"{refused}" + (" (`mlflow-iap status` says why)" if refused else ""),
    }


def _cell(text: str) -> str:
    shown = html.escape(text)
    is_link = text.startswith(("http://", "https://")) and " " not in text
    return f"<a href='{shown}' target='_blank'>{shown}</a>" if is_link else shown
