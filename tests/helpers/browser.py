"""A browser that can reach only this machine, for tests of what a person sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

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
    _CHROMIUM is None, reason="No Chromium is installed. On Debian: apt-get install chromium"
)


@contextmanager
def empty_page() -> Iterator[Page]:
    """An empty page of a new browser."""
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
        yield page
        browser.close()


def folder_for_screenshots(otherwise: Path) -> Path:
    """The folder for screenshots: MLFLOW_IAP_SCREENSHOTS, which `make screenshots` sets."""
    folder = Path(os.environ.get("MLFLOW_IAP_SCREENSHOTS") or otherwise / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
