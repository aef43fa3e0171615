"""The command ``mlflow-iap``, run in a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import mlflow
import pytest
import requests

import python_process
from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.cli.local import use
from mlflow_iap_callbacks.iap.google_tokens import LIFETIME
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from python_process import PIPE
from scripts import COMMAND
from scripts import command as _run
from waiting import wait_until

# --- local -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_local_runs_a_command_with_its_variables_and_shows_what_iap_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import mlflow; mlflow.set_experiment('e');"
        "run = mlflow.start_run(); mlflow.log_metric('m', 1.0); mlflow.end_run(); exit(3)"
    )
    monkeypatch.chdir(tmp_path)
    done = _run(
        *("local", "--folder", "kept", "--", sys.executable, "-c", script),
        MLFLOW_IAP_CLIENT_ID="another-server-s",
        HTTP_PROXY="http://127.0.0.1:9",
    )
    assert done.returncode == 3, done.stderr
    saw = dict(re.findall(r"^ (\w.*?)  +(\d+)", done.stdout, re.MULTILINE))
    assert int(saw["requests"]) >= 5
    assert saw["tokens fetched or signed"] == "1"
    assert (tmp_path / "kept" / "mlflow" / "mlflow.db").is_file()
    assert "ya29" not in done.stdout + done.stderr


def test_a_rejected_token_counts_as_replaced_no_matter_what_mlflow_responds(
    cloud: LocalCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    client = IAPMlflowClient()
    client.search_experiments()
    cloud.revoke_tokens()
    assert client.get_experiment_by_name("nobody's") is None  # by a 404
    assert use(cloud, [sys.executable, "-c", ""]) == 0
    assert re.search(r"rejected tokens replaced +1 of 1", capsys.readouterr().out)


def test_local_reports_a_command_that_cannot_be_run() -> None:
    told = _run("local", "--", "no-such-command")
    assert told.returncode == 1
    assert "Cannot run 'no-such-command'" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.slow
def test_local_stops_its_command_and_servers_when_it_is_stopped(tmp_path: Path) -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    arguments = ["local", "--folder", str(tmp_path), "--", sys.executable, "-c", script]
    with python_process.start(COMMAND, *arguments, stdout=PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    wait_until(lambda: not Path(f"/proc/{child}").exists(), "the command ends")
    log = (tmp_path / "mlflow" / "mlflow-server.log").read_text()
    server = re.search(r"running on (http://127\.0\.0\.1:\d+)", log)
    assert server is not None
    with pytest.raises(requests.ConnectionError):
        requests.get(server[1], timeout=5)


@pytest.mark.slow
def test_local_serves_on_loopback_until_it_is_stopped() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    with python_process.start(COMMAND, "local", environment=environment, stdout=PIPE) as process:
        try:
            assert process.stdout is not None
            exports = {}
            for line in process.stdout:
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").strip().partition("=")
                    exports[name] = value
                    if name == "GOOGLE_APPLICATION_CREDENTIALS":
                        break
            assert exports["MLFLOW_TRACKING_AUTH"] == "iap"
            assert exports["MLFLOW_TRACKING_URI"].startswith("http://127.0.0.1:")
            done = python_process.run(
                *("-m", "mlflow", "experiments", "search"), environment={**os.environ, **exports}
            )
            assert "Default" in done.stdout, done.stderr
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert process.returncode == 0
    assert not Path(exports["GOOGLE_APPLICATION_CREDENTIALS"]).exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(exports["MLFLOW_TRACKING_URI"], timeout=5)


# --- token -----------------------------------------------------------------------------------


def test_token_shows_what_is_in_use_and_not_the_token(echo: LocalCloud) -> None:
    shown = _run("token")
    assert shown.returncode == 0, shown.stderr
    for part in ("service_account file", "id_token", echo.trainer, str(echo.client_id)):
        assert part in shown.stdout
    lifetime = re.search(r"lifetime\s+(\d+) s", shown.stdout)
    assert lifetime is not None
    assert LIFETIME - 60 < int(lifetime[1]) <= LIFETIME + 1  # Google's clock has whole seconds
    assert "ey" + "J" not in shown.stdout


def test_token_raw_prints_only_a_token_and_iap_accepts_it(echo: LocalCloud) -> None:
    token = _run("token", "--raw").stdout.strip()
    answer = requests.get(echo.url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert answer.status_code == 200


def test_token_shows_what_is_wrong_with_the_credentials(echo: LocalCloud, tmp_path: Path) -> None:
    told = _run("token", GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "none.json"))
    assert told.returncode == 1
    assert "none.json" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("command", ["token", "doctor"])
def test_without_a_tracking_uri_the_command_says_what_to_set(command: str) -> None:
    told = _run(command)
    assert told.returncode == 1
    assert "Set MLFLOW_TRACKING_URI" in told.stdout + told.stderr


# --- doctor ----------------------------------------------------------------------------------


def test_the_doctor_finds_no_problem(cloud: LocalCloud) -> None:
    told = _run("doctor")
    assert told.returncode == 0, told.stdout
    assert "your own" in told.stdout
    assert re.search(r"MLflow\s+version \d+\.\d+", told.stdout)
    assert cloud.trainer in told.stdout


def test_the_doctor_recognizes_a_google_managed_client_and_uses_a_signed_jwt(
    new_cloud: Callable[..., LocalCloud],
) -> None:
    with new_cloud(client_id=None) as cloud:
        told = _run("doctor", **cloud.environment())
        assert told.returncode == 0, told.stdout
        assert "Google-managed" in told.stdout
        assert "signed_jwt" in told.stdout


def test_the_doctor_stops_at_a_missing_role_and_says_how_to_grant_it(cloud: LocalCloud) -> None:
    cloud.members.clear()
    told = _run("doctor")
    assert told.returncode == 1
    assert "roles/iap.httpsResourceAccessor" in told.stdout
    assert "MLflow" not in told.stdout.splitlines()[-1].split()[:2]


def test_the_doctor_stops_at_missing_credentials(echo: LocalCloud) -> None:
    told = _run(
        "doctor",
        **{"GOOGLE_APPLICATION_CREDENTIALS": "", **echo.no_metadata_environment()},
    )
    assert told.returncode == 1
    assert "No Google credentials were found" in told.stdout


def test_the_doctor_needs_no_credentials_for_a_server_without_iap(
    bare_server: MlflowServer,
) -> None:
    told = _run(
        *("doctor",),
        MLFLOW_TRACKING_URI=bare_server.url,
        GOOGLE_APPLICATION_CREDENTIALS="/nowhere",
        HTTPS_PROXY="http://user:secret@127.0.0.1:9",
    )
    assert told.returncode == 0, told.stdout
    assert "no IAP" in told.stdout
    assert "secret" not in told.stdout


@pytest.mark.parametrize(
    ("uri", "says"),
    [("http://mlflow.example", "plain text"), ("mlflow", "not the URL")],
)
def test_the_doctor_stops_at_a_bad_address(uri: str, says: str) -> None:
    told = _run("doctor", MLFLOW_TRACKING_URI=uri)
    assert told.returncode == 1
    assert says in told.stdout


# --- proxy -----------------------------------------------------------------------------------


@contextmanager
def _proxy(*arguments: str) -> Iterator[str]:
    """A running proxy; the address that it printed."""
    with python_process.start(COMMAND, "proxy", *arguments, stdout=PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_the_proxy_gives_other_programs_access_to_mlflow(cloud: LocalCloud) -> None:
    with _proxy() as address:
        assert requests.get(f"{address}/version", timeout=30).text == mlflow.__version__
        client = mlflow.MlflowClient(address)
        run = client.create_run(client.create_experiment("through the proxy"))
        client.log_metric(run.info.run_id, "loss", 0.5)
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
    assert {seen.status for seen in cloud.requests[2:]} == {200}
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)


def test_a_unix_socket_of_the_proxy_belongs_to_its_user_and_is_removed_at_the_end(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.sock"

    async def version() -> str:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://localhost/version") as response,
        ):
            return await response.text()

    with _proxy("--socket", str(path), cloud.url) as address:
        assert address == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert asyncio.run(version()) == mlflow.__version__
        taken = _run("proxy", "--socket", str(path))
        assert taken.returncode == 1
        assert f"{path} cannot be used: Address already in use" in taken.stderr
    assert not path.exists()
