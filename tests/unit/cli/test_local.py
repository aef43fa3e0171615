"""What ``mlflow-iap local`` counts, and the variables that it sets, without its servers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mlflow_iap_callbacks.cli.commands import main
from mlflow_iap_callbacks.cli.local import _summary, use
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.request_log import SeenRequest

# --- what IAP saw ----------------------------------------------------------------------------


def _seen(time: float, status: int = 200, bearer: str = "a", **changed: Any) -> SeenRequest:
    is_good = status != 401
    values: dict[str, Any] = {
        "time": time,
        "method": "POST",
        "path": "/runs/log-batch",
        "status": status,
        "account": "trainer" if is_good else None,
        "token_kind": "id_token" if is_good and bearer else None,
        "credential_header": None,
        "iap_answer": not is_good,
        "reached_upstream": is_good,
        "body_bytes": 0,
        "headers": {"authorization": bearer, "content-length": "7"},
    }
    return SeenRequest(**{**values, **changed})


def test_the_summary_counts_requests_tokens_and_responses() -> None:
    requests = [_seen(1.0), _seen(2.0), _seen(3.0, bearer="b"), _seen(4.0, 503)]
    assert _summary(requests) == {
        "requests": "4",
        "tokens fetched or signed": "2",
        "rejected tokens replaced": "0 of 0",
        "responses by status": "3 x 200, 1 x 503",
    }


@pytest.mark.parametrize(
    ("requests", "replaced"),
    [
        ([_seen(1.0), _seen(2.0, 401), _seen(3.0, bearer="b")], "1 of 1"),
        ([_seen(1.0), _seen(2.0, 401), _seen(3.0, 404, bearer="b")], "1 of 1"),
        ([_seen(1.0), _seen(2.0, 401)], "0 of 1"),
        ([_seen(1.0), _seen(2.0, 401), _seen(3.0, bearer="b", path="/other")], "0 of 1"),
        # The first one has no token, and the token of the last one was never valid.
        ([_seen(1.0, 401, bearer=""), _seen(2.0), _seen(3.0, 401, bearer="x")], "0 of 0"),
        # The application itself responded with 401.
        ([_seen(1.0), _seen(2.0, 401, iap_answer=False)], "0 of 0"),
    ],
)
def test_a_rejected_token_is_replaced_if_its_request_succeeds_later(
    requests: Sequence[SeenRequest], replaced: str
) -> None:
    assert _summary(requests)["rejected tokens replaced"] == replaced


# --- variables -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud(client_id=None) as cloud:
        yield cloud


_TELL = """
import os, sys
names = ("MLFLOW_TRACKING_URI", "MLFLOW_IAP_CLIENT_ID", "MLFLOW_TRACKING_TOKEN", "KEPT")
sys.exit(" ".join(os.environ.get(name, "-") for name in names) != sys.argv[1])
"""


def test_a_command_gets_the_cloud_s_variables_and_not_those_of_another_server(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_IAP_CLIENT_ID", "MLFLOW_TRACKING_TOKEN", "KEPT"):
        monkeypatch.setenv(name, "mine")
    expected = f"{cloud.url} - - mine"
    assert use(cloud, [sys.executable, "-c", _TELL, expected]) == 0
    assert "What IAP saw" in capsys.readouterr().out


def test_the_status_of_a_command_is_returned(cloud: LocalCloud) -> None:
    assert use(cloud, [sys.executable, "-c", "exit(3)"]) == 3


def test_a_command_that_does_not_exist_is_an_error_before_any_server_starts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    told = CliRunner().invoke(main, ["local", "--", "no-such-command"])
    assert told.exit_code == 1
    assert "Cannot run 'no-such-command'" in told.output
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_the_system_cannot_execute_is_an_error(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("no interpreter is named here")
    script.chmod(0o700)
    with pytest.raises(click.ClickException, match=r"Cannot run .*script.*after `--`"):
        use(cloud, [str(script)])
