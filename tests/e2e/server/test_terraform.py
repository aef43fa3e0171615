"""appengine/terraform, as Terraform itself plans it with the schema of Google's providers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_iap_callbacks.server.gate_settings import GateSettings
from mlflow_iap_callbacks.server.hosts import hosts_of

_ROOT = Path(__file__).parents[3]
_FOLDER = _ROOT / "appengine" / "terraform"
_PACKAGES = _ROOT / "build" / "terraform"
_PROVIDER = _ROOT / "tests" / "helpers" / "google_provider.py"
_IMAGE = "us-central1-docker.pkg.dev/my-project/mlflow/server:1"
_SERVED = {"image": _IMAGE, "served_image": _IMAGE}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("terraform"), reason="needs the program terraform"),
]
needs_provider = pytest.mark.skipif(
    not (_PACKAGES / "ready").exists(), reason="needs `make build/terraform/ready`"
)

Resources = dict[str, dict[str, Any]]
Plan = Callable[..., Resources]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because Terraform writes beside its files."""
    copy = tmp_path_factory.mktemp("appengine")
    shutil.copy(_FOLDER.parent / "lifecycle.json", copy)
    return Path(shutil.copytree(_FOLDER, copy / "terraform"))


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `terraform` finds the provider."""
    wheels = sorted(_PACKAGES.glob("*.whl"))
    command = [_PACKAGES / "bin" / "python", _PROVIDER, folder, *wheels]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CHECKPOINT_DISABLE": "1",
            "TF_IN_AUTOMATION": "1",
            "TF_REATTACH_PROVIDERS": process.stdout.readline(),
        }
        process.communicate("")


@pytest.fixture(scope="module")
def plan(folder: Path, environment: dict[str, str]) -> Plan:
    """Plan with variables, and return the values of each resource by its address."""

    def planned(**given: Any) -> Resources:
        (folder / "terraform.tfvars.json").write_text(
            json.dumps({"project": "my-project", **given})
        )
        with_password = {**environment, "TF_VAR_password": "s3cret-pw"}
        run(folder, with_password, "plan", "-input=false", "-no-color", "-out=plan")
        shown = run(folder, environment, "show", "-json", "plan")
        assert "s3cret-pw" not in shown + (folder / "plan").read_bytes().decode("latin-1")
        found = json.loads(shown)["planned_values"]["root_module"]["resources"]
        return {each["address"]: each["values"] for each in found}

    return planned


def test_it_is_formatted() -> None:
    done = subprocess.run(
        ["terraform", f"-chdir={_FOLDER}", "fmt", "-check", "-diff"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_provider
def test_it_is_valid(folder: Path, environment: dict[str, str]) -> None:
    found = json.loads(run(folder, environment, "validate", "-json"))
    assert (found["valid"], found["diagnostics"]) == (True, [])


@needs_provider
def test_an_unknown_or_missing_argument_is_found(folder: Path, environment: dict[str, str]) -> None:
    wrong = folder / "wrong.tf"
    wrong.write_text('resource "google_storage_bucket" "wrong" {\n  name = "b"\n  colour = 1\n}\n')
    try:
        with pytest.raises(AssertionError) as raised:
            run(folder, environment, "validate", "-no-color")
    finally:
        wrong.unlink()
    assert 'An argument named "colour" is not expected here' in str(raised.value)
    assert 'The argument "location" is required' in str(raised.value)


@needs_provider
def test_cloud_run_gets_settings_that_the_server_accepts(plan: Plan) -> None:
    found = plan(**_SERVED, permissions=True, admins=["ada@example.com"], hosts=["ml.example.com"])
    service = found["google_cloud_run_v2_service.mlflow[0]"]
    assert service["iap_enabled"]
    (template,) = service["template"]
    (container,) = template["containers"]
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    settings = GateSettings.from_environment(variables)
    assert settings.admins == ("ada@example.com",)
    assert hosts_of(variables) == ["ml.example.com", "mlflow-123456789012.us-central1.run.app"]
    assert variables["MLFLOW_ARTIFACTS_DESTINATION"] == "gs://my-project-mlflow/artifacts"
    assert {"MLFLOW_SERVER_DATABASE_SOCKET", "MLFLOW_SERVER_DATABASE_PASSWORD_SECRET"} < {
        *variables
    }
    assert "MLFLOW_SERVER_DATABASE_PASSWORD" not in variables
    assert container["volume_mounts"] == [{"mount_path": "/cloudsql", "name": "database"}]
    (job,) = found['google_cloud_run_v2_job.jobs["migrate"]']["template"][0]["template"]
    jobs_variables = {each["name"] for each in job["containers"][0]["env"]}
    assert jobs_variables == variables.keys() - {"MLFLOW_SERVER_HOSTS", "MLFLOW_IAP_AUDIENCE"}


@needs_provider
def test_app_engine_gets_what_app_yaml_has(plan: Plan) -> None:
    found = plan(**_SERVED, platform="app_engine", app_engine_location="us-central")
    version = found["google_app_engine_flexible_app_version.mlflow[0]"]
    app = yaml.safe_load(
        (_FOLDER.parent / "app.yaml")
        .read_text()
        .replace("{PROJECT}", "my-project")
        .replace("{NUMBER}", "123456789012")
        .replace("{REGION_ID}", "uc")
    )
    assert not [address for address in found if "cloud_run_v2_service" in address]
    for name, resource in (("cpu", "cpu"), ("memory_gb", "memory_gb"), ("disk_size_gb", "disk_gb")):
        assert version["resources"][0][resource] == app["resources"][name]
    for check in ("readiness_check", "liveness_check"):
        given = version[check][0]
        for name, value in app[check].items():
            planned = given[name.removesuffix("_sec")]
            assert planned == (f"{value}s" if name.endswith("_sec") else value), name
    assert version["manual_scaling"] == [app["manual_scaling"]]
    known = {name: value for name, value in app["env_variables"].items() if "DATABASE" not in name}
    assert known.items() <= version["env_variables"].items()
    assert GateSettings.from_environment(version["env_variables"])
    assert hosts_of({**known, "GOOGLE_CLOUD_PROJECT": "my-project", "GAE_SERVICE": "default"})


@needs_provider
def test_the_bucket_has_the_rules_of_lifecycle_json(plan: Plan) -> None:
    (rule,) = json.loads((_FOLDER.parent / "lifecycle.json").read_text())["rule"]
    (planned,) = plan()["google_storage_bucket.artifacts"]["lifecycle_rule"]
    assert planned["action"][0]["type"] == rule["action"]["type"]
    assert planned["condition"][0]["age"] == rule["condition"]["age"]
    assert planned["condition"][0]["matches_prefix"] == rule["condition"]["matchesPrefix"]


@needs_provider
def test_without_an_image_there_is_neither_a_job_nor_a_server(plan: Plan) -> None:
    assert not [address for address in plan() if "cloud_run" in address]
    only_jobs = [address for address in plan(image=_IMAGE) if "cloud_run" in address]
    assert only_jobs
    assert not [address for address in only_jobs if "_job" not in address]


@needs_provider
def test_postgresql_at_a_private_address_has_no_public_one_and_a_verified_connection(
    plan: Plan,
) -> None:
    found = plan(**_SERVED, database="postgresql", private_network="default", is_regional=True)
    instance = found["google_sql_database_instance.mlflow"]
    assert instance["database_version"].startswith("POSTGRES_")
    (settings,) = instance["settings"]
    assert settings["availability_type"] == "REGIONAL"
    assert not settings["ip_configuration"][0]["ipv4_enabled"]
    assert settings["backup_configuration"][0]["point_in_time_recovery_enabled"]
    assert {flag["name"] for flag in settings["database_flags"]} == {"max_connections"}
    (template,) = found["google_cloud_run_v2_service.mlflow[0]"]["template"]
    (container,) = template["containers"]
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    assert variables["MLFLOW_SERVER_DATABASE_ENGINE"] == "postgresql"
    assert "MLFLOW_SERVER_DATABASE_SOCKET" not in variables
    mount = container["volume_mounts"][0]["mount_path"]
    (item,) = template["volumes"][0]["secret"][0]["items"]
    assert variables["MLFLOW_SERVER_DATABASE_CA"] == f"{mount}/{item['path']}"
    assert template["vpc_access"][0]["network_interfaces"][0]["network"] == "default"


@needs_provider
@pytest.mark.parametrize("platform", ["cloud_run", "app_engine"])
def test_each_account_has_only_its_roles_and_each_member_only_iaps(
    plan: Plan, platform: str
) -> None:
    found = plan(**_SERVED, platform=platform, members=["group:data@example.com"])
    granted = {
        (address.partition(".")[0], values["role"])
        for address, values in found.items()
        if "iam_member" in address
    }
    iap = "google_iap_web_cloud_run_service" if platform == "cloud_run" else "google_iap_app_engine"
    kind = f"{iap}_iam_member" if platform == "cloud_run" else f"{iap}_service_iam_member"
    assert granted - {("google_cloud_run_v2_service_iam_member", "roles/run.invoker")} == {
        ("google_project_iam_member", "roles/cloudsql.client"),
        ("google_project_iam_member", "roles/logging.logWriter"),
        ("google_artifact_registry_repository_iam_member", "roles/artifactregistry.reader"),
        ("google_storage_bucket_iam_member", "roles/storage.objectUser"),
        ("google_secret_manager_secret_iam_member", "roles/secretmanager.secretAccessor"),
        ("google_cloud_run_v2_job_iam_member", "roles/run.invoker"),
        (kind, "roles/iap.httpsResourceAccessor"),
    }
    assert f'{kind}.members["group:data@example.com"]' in found


@needs_provider
def test_alerts_and_a_budget_reach_the_given_emails(plan: Plan) -> None:
    found = plan(
        **_SERVED, alert_emails=["ops@example.com"], billing_account="000000-000000-000000"
    )
    alerts = {address for address in found if "alert_policy" in address}
    assert alerts == {
        *(
            f'google_monitoring_alert_policy.alerts["{name}"]'
            for name in ("responses", "refusals", "disk", "connections")
        ),
        "google_monitoring_alert_policy.uptime",
    }
    channel = found['google_monitoring_notification_channel.emails["ops@example.com"]']
    assert channel["labels"] == {"email_address": "ops@example.com"}
    assert found["google_billing_budget.budget[0]"]["amount"][0]["specified_amount"][0]["units"]


@needs_provider
def test_permissions_without_an_admin_are_an_error(plan: Plan) -> None:
    with pytest.raises(AssertionError, match="Set admins to the e-mails"):
        plan(permissions=True)


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        ["terraform", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
