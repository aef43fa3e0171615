"""A study as a person sees it, on MLflow's own pages behind the local IAP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from playwright.sync_api import Page, expect

from browser import needs_browser, new_page, sign_in
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.optuna.plot_process import PlotProcess
from mlflow_iap_callbacks.optuna.plots import PAGE

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture
def page() -> Iterator[Page]:
    with new_page() as page:
        yield page


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    return (x - 2) ** 2 + trial.suggest_int("depth", 1, 9)


def test_a_person_finds_the_best_trial_the_table_of_trials_and_the_plots(
    cloud: LocalCloud, page: Page
) -> None:
    pytest.importorskip("matplotlib")
    study = optuna.create_study(study_name="seen")
    with IAPMLflowCallback() as callback:
        study.optimize(_objective, 12, callbacks=[callback])
    sign_in(page, cloud)

    page.goto(callback.summary().rows["link"])
    best = study.best_trial
    expect(page.get_by_text(f"Best: trial {best.number}, value {best.value:g}")).to_be_visible()
    training = page.get_by_role("button", name="Model training", exact=True)
    if training.count():
        expect(page.get_by_role("link", name="Model registry").first).to_be_visible()
    assert "mlflow_iap.study" in page.locator("main").inner_text()
    assert "_mlflow_iap." not in page.locator("main").inner_text()

    page.get_by_text("Show more", exact=True).click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="All trials with values and params").click()
    trials = opened.value
    trials.set_viewport_size({"width": 1800, "height": 1024})  # columns outside are not drawn
    for column in ("value", "depth", "x"):
        header = trials.get_by_role("columnheader", name=column, exact=True)
        expect(header.first).to_be_visible()
    expect(trials.get_by_role("link", name=str(best.number), exact=True)).to_be_visible()

    with page.expect_popup() as opened:
        page.get_by_role("link", name="slice", exact=True).click()
    opened.value.wait_for_function(
        "() => [...document.images].some(image => image.naturalWidth > 500"
        " && image.getBoundingClientRect().width > 200)"
    )


def test_the_interactive_plots_need_no_network(page: Page, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    study = optuna.create_study(study_name="interactive")
    study.optimize(_objective, 12)
    path = tmp_path / PAGE
    with PlotProcess() as process:
        for file in process.draw(study, ["value"], lambda: 120.0):
            if isinstance(file, Path) and file.name == PAGE:
                shutil.copy(file, path)

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.goto(path.as_uri())
    plots = page.locator("h2")
    assert plots.count() >= 5
    expect(page.locator(".js-plotly-plot")).to_have_count(plots.count())
    for number in range(plots.count()):
        plot = page.locator(".js-plotly-plot").nth(number)
        expect(plot.locator(".main-svg").first).to_be_visible()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert os.path.getsize(path) > 1_000_000
