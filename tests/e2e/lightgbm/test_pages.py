"""A run as a person sees it, on MLflow's own pages behind the local IAP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import pytest
from matplotlib.image import imread
from playwright.sync_api import Locator, Page, expect
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from browser import needs_browser, new_page, sign_in
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud

_PICTURES = ("confusion_matrix.png", "learning_curves.png", "feature_importance.png")
pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture
def page() -> Iterator[Page]:
    with new_page() as page:
        yield page


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """The folder for screenshots: MLFLOW_IAP_SCREENSHOTS, which `make screenshots` sets."""
    folder = Path(os.environ.get("MLFLOW_IAP_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_person_signs_in_and_finds_the_curves_the_plots_and_the_model(
    cloud: LocalCloud, page: Page, screenshots: Path, tmp_path: Path
) -> None:
    curves, run_id = _train("tumours")
    drawn = Path(IAPMlflowClient().download_artifacts(run_id, "lightgbm", str(tmp_path)))

    cloud.forget()
    refused: list[str] = []
    page.on("response", lambda got: refused.append(got.url) if got.status in (401, 403) else None)
    sign_in(page, cloud)
    experiment = page.get_by_role("link", name="tumours", exact=True).first
    expect(experiment).to_be_visible()
    assert page.url.startswith(cloud.url)

    # Newer versions show pages for language models first; a switch shows those for training.
    switch = page.get_by_role("button", name="Model training", exact=True)
    if switch.count():
        switch.click()
    experiment.click()
    page.get_by_role("link", name="breast-cancer", exact=True).first.click()
    expect(page.get_by_text("Finished", exact=True).first).to_be_visible()
    expect(page.get_by_text("valid-binary_logloss", exact=True).first).to_be_visible()
    expect(page.get_by_text("Logged models").first).to_be_visible()
    expect(page.get_by_role("link", name="model", exact=True).first).to_be_visible()
    _take(page, screenshots / "run.png")

    page.get_by_role("tab", name="Model metrics").click()
    search = page.get_by_placeholder("Search metric charts")
    search.fill("^(train|valid)-")
    search.blur()
    for name, values in curves.items():
        chart = _chart(page, name)
        expect(chart.locator("path.js-line").first).to_be_visible()
        assert chart.evaluate("plot => Array.from(plot.data[0].y)") == pytest.approx(values)
    header = page.get_by_test_id("experiment-view-compare-runs-section-header")
    header.first.scroll_into_view_if_needed()
    _take(page, screenshots / "curves.png")

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("lightgbm", exact=True).first.click()
    for name in _PICTURES:
        page.get_by_text(name, exact=True).first.click()
        height, width = imread(drawn / name).shape[:2]
        page.wait_for_function(
            """([width, height]) => [...document.images].some(image =>
                image.naturalWidth === width && image.naturalHeight === height
                && image.getBoundingClientRect().width > 200)""",
            arg=[width, height],
        )
    _take(page, screenshots / "pictures.png")
    assert refused == []
    assert {seen.account for seen in cloud.requests if seen.reached_upstream} == {cloud.user}


def _train(experiment_name: str) -> tuple[dict[str, list[float]], str]:
    """Train, log and deliver; return the values of each curve by metric, and the run's id."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X_train, X_valid, y_train, y_valid = train_test_split(X, y, random_state=1)
    train = lgb.Dataset(X_train, y_train)
    valid = lgb.Dataset(X_valid, y_valid, reference=train)
    evaluated: dict[str, dict[str, list[float]]] = {}
    callback = IAPLightGBMCallback(
        experiment_name=experiment_name,
        run_name="breast-cancer",
        tags={"mlflow.source.name": "train.py", "mlflow.user": "ada"},
    )
    with callback:
        params: dict[str, Any] = {
            "objective": "binary",
            "metric": ["binary_logloss", "auc"],
            "learning_rate": 0.05,
            "num_leaves": 15,
            "verbosity": -1,
            "num_threads": 1,
            "seed": 1,
        }
        booster = lgb.train(
            params,
            train,
            300,
            valid_sets=[train, valid],
            valid_names=["train", "valid"],
            callbacks=[
                lgb.early_stopping(20, verbose=False),
                lgb.record_evaluation(evaluated),
                callback,
            ],
        )
        callback.finish(booster, X=X_valid, y=y_valid)
    assert callback.flush()
    assert callback.run is not None
    curves = {
        f"{data}-{metric}": values
        for data, metrics in evaluated.items()
        for metric, values in metrics.items()
    }
    return curves, callback.run.run_id()


def _chart(page: Page, metric: str) -> Locator:
    title = page.locator("h4").get_by_text(metric, exact=True)
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(has=title)
    card.scroll_into_view_if_needed()
    return card.locator(".js-plotly-plot")


def _take(page: Page, path: Path) -> None:
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    page.mouse.move(0, 0)
    page.locator("main").screenshot(
        path=path,
        animations="disabled",
        scale="css",
        style="[data-assistant-ui] { visibility: hidden !important }",
    )
