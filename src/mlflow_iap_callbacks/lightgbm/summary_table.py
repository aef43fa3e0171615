"""The rows about training runs in the table that ``IAPLightGBMCallback.summary`` returns."""

from __future__ import annotations

from collections.abc import Sequence

from ..delivery.sender import Sender
from ..delivery.summary import Summary, delivery_rows
from ..plurals import counted
from .training import Training


def summary_of(trainings: Sequence[Training], sender: Sender) -> Summary:
    """Summarize training runs and the delivery of their records."""
    rows = {}
    for number, training in enumerate(trainings, start=1):
        # The names of a single training run's rows are short.
        of_training = f" of training {number}" if len(trainings) > 1 else ""
        iterations = counted(training.curves.last + 1, "iteration")
        rows[f"training{of_training[12:]}"] = f"{training.status or 'RUNNING'} after {iterations}"
        for name, (value, step) in training.curves.bests().items():
            rows[f"best {name}{of_training}"] = f"{value:g} at iteration {step}"
        url = training.run.url
        if url is not None:
            rows[f"link{of_training}"] = url
    return Summary(rows | delivery_rows(sender))
