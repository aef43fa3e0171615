"""A notebook that uses everything: its cells' outputs, and the page that a person sees."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from textwrap import dedent
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from playwright.sync_api import expect

from browser import needs_browser, new_page
from mlflow_iap_callbacks.local import LocalCloud

pytestmark = pytest.mark.slow

_CELLS = {
    "imports": """
        import warnings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's own import asks for widgets
            import optuna
        import lightgbm as lgb, numpy as np
        from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback, IAPRun
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        X = np.random.default_rng(0).normal(size=(200, 3))
        y = X[:, 0] + X[:, 1]
        """,
    "study": """
        callback = IAPMLflowCallback()
        study = optuna.create_study(study_name="{name}")
        study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, 3, callbacks=[callback])
        """,
    "close": "callback.close()",
    "summary of the study": "callback.summary()",
    "training": """
        trained = IAPLightGBMCallback(experiment_name="{name}")
        data = lgb.Dataset(X, y)
        with trained:
            booster = lgb.train({{"verbosity": -1, "num_threads": 1, "objective": "l2"}}, data, 20,
                valid_sets=[data], callbacks=[trained])
            trained.finish(booster, X=X, y=y)
        """,
    "summary of the training": "trained.summary()",
    "slow": """
        run = IAPRun(experiment_name="{name}", run_name="slow")
        run.log_metrics({{"loss": 0.5}}, step=1)
        run.finish()
        run.flush()
        """,
    "handle": "run",
}


@pytest.fixture
def outputs(cloud: LocalCloud, tmp_path: Path) -> tuple[dict[str, list[Any]], str]:
    """The outputs of each cell, and the page."""
    name = uuid.uuid4().hex
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(dedent(text.format(name=name))) for text in _CELLS.values()
        ]
    )
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    with client.setup_kernel():
        for number, (title, cell) in enumerate(zip(_CELLS, notebook.cells, strict=True)):
            if title == "slow":  # the server fails for a few seconds
                cloud.fault("answer", status=503, times=4)
            client.execute_cell(cell, number)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    return dict(zip(_CELLS, [cell.outputs for cell in notebook.cells], strict=True)), page


def _texts(outputs: list[Any]) -> list[str]:
    """What a person reads in each output."""
    found = []
    for output in outputs:
        data = output.get("data", {})
        shown = data.get("text/html") or data.get("text/plain") or output.get("text", "")
        found.append(re.sub(r"<[^>]*>", " ", shown).strip())
    return found


@needs_browser
def test_a_notebook_shows_links_lines_and_tables_and_nothing_else(
    outputs: tuple[dict[str, list[Any]], str], cloud: LocalCloud, tmp_path: Path
) -> None:
    cells, html = outputs
    texts = {title: _texts(found) for title, found in cells.items()}
    assert texts["imports"] == []
    # No warning, no widget, no block without a text, and nothing on stderr's red ground.
    assert [o.output_type for found in cells.values() for o in found if "text" in o] == []
    assert all(text for found in texts.values() for text in found)
    assert "ipywidgets" not in html

    # The line with the progress of a delivery, in each cell that took more than a second.
    lines = {
        title: [text for text in found if text.startswith("Sent ")]
        for title, found in texts.items()
    }
    assert lines["slow"] == [f"Sent 3 records to {cloud.url}."]
    # One for each delivery: closing delivers before and after it draws.
    assert all(len(found) <= 1 + (title == "close") for title, found in lines.items())
    rest = {title: [t for t in found if t not in lines[title]] for title, found in texts.items()}

    link, result = rest["study"] + rest["close"]
    assert re.fullmatch(rf"Study \w+:\s+{cloud.url}/\S+/runs/\w{{32}}\?\S+", link)
    assert re.fullmatch(r"IAPFlushResult\(delivered=\d+, waiting=0, refused=0\)", result)
    (table,) = rest["summary of the study"]
    assert all(word in table for word in ("3 COMPLETE", "best", "link", "delivered"))

    link, steps = sorted(rest["training"], reverse=True)
    assert re.fullmatch(rf"Run:\s+{cloud.url}/\S+/runs/\w{{32}}\?\S+", link)
    assert re.fullmatch("LightGBM: logged the feature importance, .*the model", steps)
    (table,) = rest["summary of the training"]
    assert "FINISHED after 20 iterations" in table
    assert "best training-l2" in table

    link, result = rest["slow"]
    assert re.fullmatch(rf"Run slow:\s+{cloud.url}/\S+/runs/\w{{32}}\?\S+", link)
    assert result.startswith("IAPFlushResult(")
    assert rest["handle"] == [link.replace("Run slow", "Run")]

    with new_page() as page:
        page.set_content(html)
        expect(page.locator("table th", has_text="delivered")).to_have_count(2)
        expect(page.locator("table a[href*='/runs/']")).to_have_count(2)
        blocks = page.locator(".jp-OutputArea-output")
        for block in blocks.all():
            box = block.bounding_box()
            assert box is not None
            assert box["height"] > 8
            assert block.inner_text().strip()
        expect(page.locator("[data-mime-type='application/vnd.jupyter.stderr']")).to_have_count(0)
