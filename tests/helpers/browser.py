"""A browser that can reach only this machine, for MLflow's pages behind the local IAP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from mlflow_iap_callbacks.local import LocalCloud

_DEADLINE = 30_000  # milliseconds
_CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_QUIET = (
    *("--disable-background-networking", "--disable-breakpad", "--disable-component-update"),
    *("--disable-sync", "--disable-domain-reliability", "--metrics-recording-only", "--no-pings"),
    # It can only find the names and addresses of this machine.
    *("--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)

needs_browser = pytest.mark.skipif(
    _CHROMIUM is None,
    reason="No Chromium is installed. On Debian: apt-get install chromium",
)


@contextmanager
def new_page() -> Iterator[Page]:
    """Open an empty page of a new browser."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=_CHROMIUM,
            args=[*_QUIET, *(["--no-sandbox"] if is_root else [])],
        )
        page = browser.new_page(
            viewport={"width": 1280, "height": 1024}, locale="en-GB", timezone_id="UTC"
        )
        page.set_default_timeout(_DEADLINE)
        expect.set_options(timeout=_DEADLINE)
        # MLflow's assistant opens by itself once, and would take a quarter of the screen.
        page.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
        )
        yield page
        browser.close()


def sign_in(page: Page, cloud: LocalCloud) -> None:
    """Open MLflow, and sign in as the cloud's user on the page that IAP sends to."""
    page.goto(cloud.url)
    expect(page.get_by_role("heading", name="Choose an account")).to_be_visible()
    page.get_by_role("button", name=cloud.user, exact=True).click()
    expect(page.get_by_role("heading", name="Choose an account")).to_have_count(0)
