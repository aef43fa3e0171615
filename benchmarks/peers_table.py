"""Formats the results of the probes as Markdown: in full, and a summary for the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from peers.rows import Probe

_HEAD = """\
# LightGBM integrations compared

Each cell is the result of a probe (`make peers`): a small training run with each integration, \
and then what its tracker has stored, read back from the server or from its files. Curves are \
compared with those of `lgb.record_evaluation`, value by value and step by step. *part* says \
which part is stored; *fails* shows the exception that was raised during training, or in the \
call at its end. The function that an integration offers for the end of training is called with \
all of its options on (`IAPLightGBMCallback.finish`, wandb's `log_summary`, Neptune's \
`create_booster_summary`). wandb, Neptune and SwanLab run offline. A run is opened around \
training, as in their documentation; autolog opens its own. *not run*: this probe has no server. \
LightGBM {lightgbm}, on Python {python}."""

_SECTIONS = (
    "Curve",
    "End of training",
    "Other behaviour",
    "Params",
    "Data set",
    "Finished model",
)
NOT_RUN = "not run"
_DASH = "\N{EN DASH}"

# Labels, and the rows that each summarizes, as PROBE.ROW.
_SHORT: tuple[tuple[str, str], ...] = (
    (
        "`lgb.train`: every data set and metric, including custom ones",
        "lgb_train.curve custom_metric.custom",
    ),
    ("any metric name; no two names merged", "at_names.at odd_names.odd names_apart.apart"),
    ("`lgb.cv`: mean and standard deviation", "lgb_cv.mean lgb_cv.deviation"),
    ("`lgb.cv`: each fold", "lgb_cv.folds"),
    ("`LGBMClassifier.fit`, with feature importance", "classifier.fit classifier.end"),
    (
        "`cross_val_score`, `GridSearchCV`: one run per fit",
        "cross_validation.one cross_validation_in_processes.two grid_search.grid",
    ),
    ("Dask: one run", "dask_estimator.dask"),
    (
        "early stopping: the curve ends at the last iteration",
        "early_stopping.last early_stopping.apart",
    ),
    ("best iteration and score", "early_stopping.iteration early_stopping.score"),
    ("pruned or failed: the curve is kept", "pruned_trial.pruned raising.kept"),
    (
        "the status says whether a run finished or failed",
        "early_stopping.finished raising.failed continued.finished",
    ),
    ("`init_model` with early stopping: steps continue", "continued.steps"),
    ("12 models in 4 threads: one run each", "threads.threads"),
    ("your callbacks and the model are unchanged", "unchanged.callbacks unchanged.model"),
    ("server down: training continues, data arrives later", "server_away.goes_on server_away.kept"),
    ("params as given", "params.given"),
    ("params as LightGBM used them", "params.resolved"),
    ("learning rate, seconds per iteration", "learning_rate.rate params.seconds"),
    (
        "data set: size, feature names, categories, digest",
        "data_set.shape data_set.names data_set.categorical data_set.digest",
    ),
    ("sparse data stays sparse", "sparse_data.sparse"),
    ("feature importance as tables", "finished_model.gain finished_model.split"),
    (
        "feature importance as a plot, even of 2,000 features",
        "finished_model.importance wide_data.wide",
    ),
    (
        "learning curves, confusion matrix, residuals",
        "finished_model.curves finished_model.confusion regression.residuals",
    ),
    ("trees", "finished_model.trees"),
    ("the model", "finished_model.model"),
    (
        "signature, example, requirements, registry",
        "finished_model.signature finished_model.example finished_model.requirements "
        "finished_model.registered",
    ),
    ("curve thinned to N points", "thinned.thin"),
)


@dataclass(frozen=True)
class Column:
    """The results of an integration.

    Attributes:
        versions: versions of the packages that it ran with.
        cells: cells by name of probe and row.
        unimportable: why it cannot be imported; None if it can.
        note: text below the table.
    """

    title: str
    versions: Mapping[str, str]
    cells: Mapping[tuple[str, str], str]
    unimportable: str | None = None
    note: str = ""


def markdown(probes: Sequence[Probe], columns: Sequence[Column], python: str) -> str:
    """Return all rows, and the notes."""
    lightgbm = " and ".join(sorted({column.versions["lightgbm"] for column in columns}))
    titles: list[str] = []
    notes: list[str] = []
    for column in columns:
        title = column.title
        note = column.note
        if column.unimportable:
            why = re.sub(r" \(/.*?\)", "", column.unimportable)
            note = f"With SciPy {column.versions['scipy']}: {why}."
        if note:
            notes.append(f"[^{len(notes) + 1}]: {note}")
            title += f"[^{len(notes)}]"
        titles.append(title)
    rows = [(probe.section, probe.name, *row) for probe in probes for row in probe.rows.items()]
    lines = [_HEAD.format(lightgbm=lightgbm, python=python), "", *_head(titles)]
    for section in _SECTIONS:
        lines.append(_line([f"**{section}**", *("" for _ in columns)]))
        for each, probe, row, label in rows:
            if each == section:
                cells = [column.cells.get((probe, row), NOT_RUN) for column in columns]
                lines.append(_line([label, *cells]))
    return "\n".join([*lines, "", *notes, ""])


def short(columns: Sequence[Column]) -> str:
    """Return the summary of the rows, without notes."""
    return "\n".join(_short(columns))


def _short(columns: Sequence[Column]) -> Iterator[str]:
    # Without peers that do not run at all, which cannot be compared.
    running = [column for column in columns if not column.unimportable]
    yield from _head([column.title for column in running])
    for label, rows in _SHORT:
        keys = [tuple(row.split(".")) for row in rows.split()]
        found = [
            [column.cells.get((probe, row), NOT_RUN) for probe, row in keys] for column in running
        ]
        yield _line([label, *map(_sign, found)])
    yield ""
    yield f"✓ yes · part: some of it · {_DASH} no · ✗ raises an exception in your code"


def _sign(cells: Sequence[str]) -> str:
    kinds = {cell.partition(":")[0] for cell in cells}
    if kinds == {NOT_RUN}:
        return ""
    if "fails" in kinds:
        return "part, ✗" if "yes" in kinds else "✗"
    if kinds == {"yes"}:
        return "✓"
    return _DASH if kinds == {"no"} else "part"


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(["", *titles]), _line(["---", *(":-:" for _ in titles)])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
