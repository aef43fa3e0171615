"""The deployed files agree with each other, with the package, and with App Engine."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from mlflow_iap_callbacks.server.artifacts import PARTS_FOLDER

_ROOT = Path(__file__).parents[3]
_APPENGINE = _ROOT / "appengine"
_PLACEHOLDERS = {
    "PROJECT": "my-project",
    "NUMBER": "123456789012",
    "REGION": "us-central1",
    "REGION_ID": "uc",
    "SERVICE": "mlflow",
}
# Dependencies that only clients need.
_CLIENTS = {
    *("aiohttp", "lightgbm", "msgpack", "optuna", "platformdirs", "requests", "rich", "tenacity"),
    "tqdm",
}


@pytest.fixture(scope="module")
def app() -> dict[str, Any]:
    """app.yaml with its placeholders replaced, as by `prepare`."""
    text = (_APPENGINE / "app.yaml").read_text()
    for name, value in _PLACEHOLDERS.items():
        text = text.replace(f"{{{name}}}", value)
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_the_dockerfile_and_the_scripts_pass_their_linters() -> None:
    folder = Path(sys.executable).parent
    scripts = [_APPENGINE / "prepare", _APPENGINE / "entrypoint.sh", _ROOT / ".ci" / "run"]
    for command in (
        [folder / "hadolint", _APPENGINE / "Dockerfile"],
        [folder / "shellcheck", *scripts],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_image_has_the_mlflow_that_the_tests_run_and_the_client_supports() -> None:
    pinned = pins("requirements.txt")["mlflow"]
    assert pins("requirements.in") == {"mlflow": pinned}
    supported = requirements_of_the_package()["mlflow"].specifier
    assert supported.contains(pinned)
    lowest = {str(Version(each.version)) for each in supported}
    if str(Version(mlflow.__version__)).removesuffix(".0") in lowest:
        pytest.skip("these are the lowest versions, which the image does not have")
    assert mlflow.__version__ == pinned, "run `make requirements` with the new version"


def test_the_image_has_all_packages_that_the_server_needs_pinned_by_hash() -> None:
    text = (_APPENGINE / "requirements.txt").read_text()
    pinned = pins("requirements.txt")
    for block in re.split(r"\n(?=[a-z0-9])", text.strip()):
        assert "--hash=sha256:" in block, block
    needed = requirements_of_the_package("server")
    assert needed.keys() >= {"pymysql", "uvloop", "mlflow", "google-auth"}
    for name in needed.keys() - _CLIENTS:
        assert needed[name].specifier.contains(pinned[name]), name
    assert not {"lightgbm", "optuna", "grpcio"} & pinned.keys()


def test_app_yaml_contains_no_secret(app: dict[str, Any]) -> None:
    variables = app["env_variables"]
    assert "MLFLOW_SERVER_DATABASE_PASSWORD" not in variables
    assert variables["MLFLOW_SERVER_DATABASE_PASSWORD_SECRET"].startswith("projects/my-project/")
    assert app["service_account"] == "mlflow-server@my-project.iam.gserviceaccount.com"
    assert not [name for name in variables if "TOKEN" in name or name.endswith("PASSWORD")]


def test_app_yaml_has_the_audience_of_this_application(app: dict[str, Any]) -> None:
    audience = app["env_variables"]["MLFLOW_IAP_AUDIENCE"]
    assert audience == "/projects/123456789012/apps/my-project"


def test_health_checks_use_a_path_that_needs_no_sign_in(app: dict[str, Any]) -> None:
    ready, alive = app["readiness_check"], app["liveness_check"]
    assert ready["path"] == alive["path"] == "/health"
    # App Engine's limits, in seconds.
    assert 1 <= ready["app_start_timeout_sec"] <= 1800
    for check in (ready, alive):
        assert 1 <= check["check_interval_sec"] <= 300
        assert 1 <= check["timeout_sec"] <= 300
    assert ready["app_start_timeout_sec"] > 120 + 60, "time to wait for the database, and to start"


def test_app_engine_offers_the_machine_in_app_yaml(app: dict[str, Any]) -> None:
    resources = app["resources"]
    assert resources["cpu"] == 1 or resources["cpu"] % 2 == 0
    assert 1.0 <= (resources["memory_gb"] + 0.4) / resources["cpu"] <= 6.5
    assert resources["disk_size_gb"] >= 10
    assert app["manual_scaling"]["instances"] >= 1


def test_the_bucket_deletes_parts_of_unfinished_uploads(app: dict[str, Any]) -> None:
    lifecycle = yaml.safe_load((_APPENGINE / "lifecycle.json").read_text())
    folder = app["env_variables"]["MLFLOW_ARTIFACTS_DESTINATION"].split("/", 3)[3]
    (rule,) = lifecycle["rule"]
    assert rule["condition"]["matchesPrefix"] == [f"{folder}/{PARTS_FOLDER}/"]
    assert rule["condition"]["age"] > 7, "days; the URLs of an upload are valid for a week"


def test_the_image_has_a_pinned_base_and_runs_without_privileges() -> None:
    lines = (_APPENGINE / "Dockerfile").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("ARG PYTHON=")]
    assert re.fullmatch(r"ARG PYTHON=python:3\.12-slim-trixie@sha256:[0-9a-f]{64}", base)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert (
        "exec python -m mlflow_iap_callbacks.server" in (_APPENGINE / "entrypoint.sh").read_text()
    )


def requirements_of_the_package(extra: str = "") -> dict[str, Requirement]:
    found = map(Requirement, importlib.metadata.requires("mlflow-iap-callbacks") or ())
    return {
        requirement.name: requirement
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    }


def pins(name: str) -> dict[str, str]:
    lines = (_APPENGINE / name).read_text().splitlines()
    found = [re.match(r"([a-z0-9-]+)(?:\[auth\])?==([^ \\]+)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}
