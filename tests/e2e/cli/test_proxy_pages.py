"""MLflow's own pages in a browser that reaches them through ``mlflow-iap proxy``."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Any

import mlflow
import pytest
from playwright.sync_api import Page, Request, Response, expect

import python_process
from browser import needs_browser, new_page
from mlflow_iap_callbacks.local import LocalCloud
from python_process import PIPE
from scripts import COMMAND

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_persons_page_of_a_run_loads_without_a_failed_request(
    cloud: LocalCloud, name: str, end: str
) -> None:
    mlflow.set_experiment(name)
    with mlflow.start_run(run_name="seen") as run:
        mlflow.log_metrics({"loss": 0.25})
        mlflow.log_text("content", "folder/file.txt")
    failed: list[str] = []

    def note(response: Response) -> None:
        # MLflow has this path only with its own authentication.
        if response.status >= 400 and not response.url.endswith("/users/current"):
            failed.append(f"{response.status} {response.url}")

    def note_failure(request: Request) -> None:
        # The page itself ends requests whose responses it no longer needs.
        if request.failure != "net::ERR_ABORTED":
            failed.append(f"{request.failure} {request.url}")

    with ExitStack() as stack:
        process: Any = stack.enter_context(python_process.start(COMMAND, "proxy", stdout=PIPE))
        stack.callback(process.send_signal, signal.SIGINT)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        page: Page = stack.enter_context(new_page())
        page.on("response", note)
        page.on("requestfailed", note_failure)
        page.goto(address + end)
        expect(page.get_by_role("link", name="Experiments").first).to_be_visible()
        page.goto(f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
        expect(page.get_by_role("heading", name="seen")).to_be_visible()
        expect(page.get_by_text("0.25").first).to_be_visible()
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("folder").first.click()
        page.get_by_text("file.txt").first.click()
        expect(page.get_by_text("content").first).to_be_visible()
    assert failed == []
