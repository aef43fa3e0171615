"""All Python code in the documentation runs, against a real server behind a local IAP."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.local import LocalCloud
from pages import GUIDE, PAGES, blocks, name_of

pytestmark = pytest.mark.slow

_WITH_PYTHON = [page for page in GUIDE if blocks(page, "python")]


@pytest.mark.parametrize("page", _WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom_and_all_of_it_is_delivered(
    page: Path, cloud: LocalCloud, caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page on migration imports what Optuna has deprecated
        for block in blocks(page, "python"):
            lines = "\n" * (block.line - 1)  # so that an error names the line of the page
            exec(compile(lines + block.text, page, "exec"), names)
    for name, function in list(names.items()):
        if name.startswith("test_"):
            assert callable(function)
            function(cloud)
            cloud.members.add(cloud.trainer)
    assert IAPMLflowCallback().flush(120.0)
    # The callbacks warn instead of raising if something cannot be logged.
    told = [record for record in caplog.records if record.name.startswith("mlflow_iap_callbacks")]
    assert [record.getMessage() for record in told] == []


@pytest.mark.parametrize("page", sorted(set(PAGES) - set(GUIDE)), ids=name_of)
def test_the_python_of_a_page_for_google_cloud_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile("\n" * (block.line - 1) + block.text, page, "exec")
