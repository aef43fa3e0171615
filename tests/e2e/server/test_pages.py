"""MLflow's own pages, in a browser behind the gate: none asks for what is not served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from playwright.sync_api import Page, Response, TimeoutError

from browser import needs_browser, new_page, sign_in
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from server_helpers import gated, send, spans

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")
pytestmark = [pytest.mark.slow, needs_browser]

_MOST = 45  # pages
_ERRORS = "[class*=notification-notice-error], [class*=alert-error], [class*=empty-error]"
_SETTLED = 5_000  # milliseconds for a page to have sent all its requests


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCloud, MlflowServer]]:
    with gated(tmp_path_factory.mktemp("pages")) as both:
        yield both


@pytest.fixture
def page() -> Iterator[Page]:
    with new_page() as page:
        yield page


def _fill(cloud: LocalCloud, server: MlflowServer) -> list[str]:
    """Create one record of each kind, and return the pages that show them."""

    def post(path: str, **body: Any) -> Any:
        answer = send(server, cloud.assertion(cloud.user), "POST", path, json=body)
        assert answer.ok, answer.text
        return answer.json()

    api, api_3 = "/api/2.0/mlflow", "/api/3.0/mlflow"
    name = post(f"{api}/experiments/create", name="pages")["experiment_id"]
    run = post(f"{api}/runs/create", experiment_id=name)["run"]["info"]["run_id"]
    metrics = [{"key": "loss", "value": 1, "timestamp": 1, "step": step} for step in range(3)]
    post(f"{api}/runs/log-batch", run_id=run, metrics=metrics, params=[{"key": "x", "value": "1"}])
    model = post(f"{api}/logged-models", experiment_id=name, name="m", source_run_id=run)
    model_id = model["model"]["info"]["model_id"]
    post(f"{api}/registered-models/create", name="model")
    folder = f"{name}/{run}/artifacts/m"
    answer = send(
        *(server, cloud.assertion(cloud.user), "PUT"),
        *(f"/api/2.0/mlflow-artifacts/artifacts/{folder}/MLmodel",),
        data="flavors: {}",
    )
    assert answer.ok
    source = f"mlflow-artifacts:/{folder}"
    post(f"{api}/model-versions/create", name="model", run_id=run, source=source)
    prompt = [{"key": "mlflow.prompt.is_prompt", "value": "true"}]
    text = [*prompt, {"key": "mlflow.prompt.text", "value": "Hello"}]
    post(f"{api}/registered-models/create", name="prompt", tags=prompt)
    post(f"{api}/model-versions/create", name="prompt", source="dummy-source", tags=text)
    post(f"{api_3}/datasets/create", name="dataset", experiment_ids=[name])
    headers = {"X-MLflow-Experiment-Id": name}
    assertion = cloud.assertion(cloud.user)
    sent = send(server, assertion, "POST", "/v1/traces", json=spans("a" * 32), headers=headers)
    assert sent.ok
    runs = f"/experiments/{name}/runs/{run}"
    return [
        *("/", "/experiments", "/models", "/prompts", "/settings"),
        *(f"/experiments/{name}", f"/experiments/{name}/runs", f"/experiments/{name}/traces"),
        *(runs, f"{runs}/model-metrics", f"{runs}/artifacts", f"{runs}/traces"),
        *(f"/experiments/{name}/models/{model_id}", "/models/model", "/models/model/versions/1"),
        *("/prompts/prompt", f'/compare-runs?runs=["{run}"]&experiments=["{name}"]'),
        *(f"/experiments/{name}/datasets", f"/experiments/{name}/evaluation-runs"),
    ]


@pytest.mark.timeout(600)
def test_no_page_of_mlflow_fails_at_a_request_of_its_own_or_shows_an_error(
    both: tuple[LocalCloud, MlflowServer], page: Page
) -> None:
    cloud, server = both
    failed: dict[str, set[str]] = {}
    here = "/"

    def note(response: Response) -> None:
        path = response.url.removeprefix(cloud.url)
        if path != response.url and response.status >= 400:
            failed.setdefault(here, set()).add(f"{response.status} {path}")

    pages = _fill(cloud, server)
    sign_in(page, cloud)
    page.on("response", note)
    seen: set[str] = set()
    while pages and len(seen) < _MOST:
        here = pages.pop(0)
        kind = re.sub(r"\?.*", "", here)
        if kind in seen:
            continue
        seen.add(kind)
        page.goto(f"{cloud.url}/#{here}")
        with suppress(TimeoutError):  # a page that asks again and again
            page.wait_for_load_state("networkidle", timeout=_SETTLED)
        links = page.locator("a[href*='#/']").evaluate_all(
            "links => links.map(link => link.getAttribute('href').split('#')[1])"
        )
        pages += [link for link in links if link.startswith("/")]
        for text in page.locator(_ERRORS).all_inner_texts():
            failed.setdefault(here, set()).add(f"shows {text[:200]!r}")
    assert len(seen) >= 20
    assert not failed, "\n".join(f"{each} on {here}" for here in failed for each in failed[here])
