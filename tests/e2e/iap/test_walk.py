"""All of MLflow's client, fluent API and tracing: the same through IAP, amid faults, as without it.

`mlflow_walk` is the program that uses them. A twentieth of the responses is replaced or lost.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import get_args

import pytest

import mlflow_walk
import python_process
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from mlflow_iap_callbacks.local.faults import FaultKind

pytestmark = pytest.mark.timeout(1200)

_KINDS = [kind for kind in get_args(FaultKind) if not kind.endswith("midway")]
_SHARE = 0.05
_expected: dict[str, str] = {}


def _walk(**variables: str) -> dict[str, str]:
    """What each step of the program got."""
    # MLflow's own thread for traces loses a span now and then, with and without IAP.
    variables = {"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false", **variables}
    done = python_process.run(
        *(mlflow_walk.__file__, f"w{uuid.uuid4().hex[:8]}"),
        environment={**os.environ, **variables},
        seconds=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def expected(bare_server: MlflowServer, tmp_path: Path) -> dict[str, str]:
    """What the steps get without IAP."""
    if not _expected:
        _expected.update(_walk(MLFLOW_TRACKING_URI=bare_server.url))
        errors = [each for each in _expected.values() if "Error: " in each or "Exception: " in each]
        assert (len(_expected) > 150, len(errors)) == (True, mlflow_walk.ERRORS), errors
    return _expected


@pytest.mark.slow
def test_each_step_gets_the_same_while_tokens_expire_after_two_seconds(
    expected: dict[str, str], bare_server: MlflowServer
) -> None:
    with LocalCloud(bare_server.url, token_lifetime=2.0) as cloud:
        assert _walk(**cloud.environment()) == expected
        assert len(cloud.tokens) > 2


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", _KINDS)
def test_each_step_gets_the_same_amid_faults(
    expected: dict[str, str], bare_server: MlflowServer, kind: FaultKind, seed: int
) -> None:
    with LocalCloud(bare_server.url, token_lifetime=2.0) as cloud:
        cloud.fault_rate(kind, _SHARE, seed=seed)
        assert _walk(**cloud.environment()) == expected
        assert {0, 503} & {seen.status for seen in cloud.requests}
