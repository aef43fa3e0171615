"""``IAPMlflowClient`` against a real MLflow server behind a local IAP."""

from __future__ import annotations

import logging
import math
import os
import pickle
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlflow_iap_callbacks import (
    IAPConfigurationError,
    IAPCredentials,
    IAPCredentialsError,
    IAPMlflowClient,
    IAPRefusedError,
    IAPUnknownOutcomeError,
)
from mlflow_iap_callbacks.iap.mlflow_plugin import auth_for
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from tracking_server import TrackingServer
from variables import set_all


@pytest.fixture
def experiment(cloud: LocalCloud) -> str:
    return str(IAPMlflowClient().create_experiment(uuid.uuid4().hex))


def _points(client: IAPMlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def test_inherited_methods_work_through_iap(
    cloud: LocalCloud, experiment: str, tmp_path: Path
) -> None:
    client = IAPMlflowClient()
    run_id = client.create_run(experiment, tags={"a": "b"}, run_name="r").info.run_id
    client.log_batch(run_id, [Metric("m", 0.5, 1, 0)], [Param("p", "1")], [RunTag("t", "2")])
    client.log_metric(run_id, "m", 0.25, step=1)
    (tmp_path / "file.txt").write_text("content")
    client.log_artifact(run_id, str(tmp_path / "file.txt"), "folder")
    client.set_terminated(run_id, "KILLED")

    run = client.get_run(run_id)
    assert run.data.params == {"p": "1"}
    assert (run.data.tags["a"], run.data.tags["t"], run.info.status) == ("b", "2", "KILLED")
    assert _points(client, run_id, "m") == [(0, 0.5), (1, 0.25)]
    downloaded = client.download_artifacts(run_id, "folder/file.txt", str(tmp_path / "to"))
    assert Path(downloaded).read_text() == "content"
    assert client.search_runs([experiment])[0].info.run_id == run_id
    name = uuid.uuid4().hex
    client.create_registered_model(name)
    client.create_model_version(name, "s3://somewhere/model", run_id)
    assert [v.version for v in client.search_model_versions(f"name='{name}'")] in ([1], ["1"])
    accounts = {seen.account for seen in cloud.requests if seen.reached_upstream}
    assert accounts == {cloud.trainer}
    assert len(cloud.tokens) == 1


def test_log_batch_stores_and_rejects_what_mlflows_own_does(
    cloud: LocalCloud, experiment: str
) -> None:
    client = IAPMlflowClient()
    values = [0.1, -0.0, 1e22, 5e-324, 1.7e308, 7, math.inf, -math.inf, math.nan]
    metrics = [Metric("m", value, 2**53 + 1 + n, 2**62 - n) for n, value in enumerate(values)]
    texts = [("a/b é:1", '\u2028 \x00"\\ 😀'), ("empty", "")]
    params = [Param(*text) for text in texts]
    tags = [RunTag(*text) for text in texts]
    methods: list[Callable[..., object]] = [
        client.log_batch,
        partial(MlflowClient.log_batch, client),
    ]
    found, errors = [], []
    for log_batch in methods:
        run_id = client.create_run(experiment).info.run_id
        log_batch(run_id, metrics[:-1], params[1:], tags[1:])
        for some in ({"metrics": metrics[-1:]}, {"params": params[:1]}, {"tags": tags[:1]}):
            with suppress(MlflowException):
                log_batch(run_id, **some)
        data = client.get_run(run_id).data
        points = client.get_metric_history(run_id, "m")
        found.append(
            (
                sorted(repr((p.value, p.timestamp, p.step)) for p in points),
                data.params,
                {name: tag for name, tag in data.tags.items() if name in dict(texts)},
            )
        )
        for unwanted in (
            {"metrics": [Metric("a?", 1.0, 1, 1)]},
            {"metrics": [Metric("a", 1.0, -1, 1)]},
            {"params": [Param("..", "b")]},
            {"params": [Param("empty", "changed")]},
            {"tags": [RunTag("a" * 300, "b")]},
        ):
            with pytest.raises(MlflowException) as error:
                log_batch(run_id, **unwanted)
            errors.append((unwanted, str(error.value).replace(run_id, "RUN")))
    assert found[0] == found[1]
    assert len(found[0][0]) >= len(values) - 1
    half = len(errors) // 2
    assert [why for _, why in errors[:half]] == [why for _, why in errors[half:]]


@pytest.mark.parametrize(
    ("kind", "times", "deadline"),
    [  # A run that does not appear is waited for during half of the deadline, for at most 10 s.
        ("reset_before", 1, 6.0),
        pytest.param("reset_before", 2, 120.0, marks=pytest.mark.soak),
        ("reset_after", 2, 120.0),
        ("answer_after", 2, 120.0),
    ],
)
def test_create_run_creates_one_run_no_matter_which_response_is_lost(
    cloud: LocalCloud, experiment: str, kind: str, times: int, deadline: float
) -> None:
    client = IAPMlflowClient(deadline=deadline)
    cloud.fault(kind, path="runs/create", times=times, status=502)  # type: ignore[arg-type]
    run = client.create_run(experiment, tags={"mine": "1"})
    runs = client.search_runs([experiment])
    assert [each.info.run_id for each in runs] == [run.info.run_id]
    assert run.data.tags["mine"] == "1"


@pytest.mark.slow
def test_create_run_waits_as_long_as_retry_after_says(cloud: LocalCloud, experiment: str) -> None:
    client = IAPMlflowClient(deadline=6.0)
    cloud.fault("answer", path="runs/create", status=503, retry_after=4)
    client.create_run(experiment)
    first, second = (seen.time for seen in cloud.requests if "runs/create" in seen.path)
    assert second - first >= 4.0


def test_a_model_version_whose_response_was_lost_is_found_and_not_created_again(
    cloud: LocalCloud, experiment: str
) -> None:
    client = IAPMlflowClient()
    name = uuid.uuid4().hex
    client.create_registered_model(name)
    cloud.fault("reset_after", path="model-versions/create", times=2)
    for number in (1, 2):
        version = client.create_model_version(name, "s3://somewhere/model", tags={"a": "b"})
        assert (int(version.version), version.tags) == (number, {"a": "b"})
    assert len(client.search_model_versions(f"name='{name}'")) == 2


def test_an_effect_that_cannot_be_found_is_an_unknown_outcome(cloud: LocalCloud) -> None:
    client = IAPMlflowClient()
    cloud.fault("reset_before", path="/test")
    with pytest.raises(IAPUnknownOutcomeError, match="webhooks/1/test"):
        client.test_webhook("1")


@pytest.mark.slow
def test_each_point_arrives_once_while_a_fifth_of_the_responses_is_lost(
    cloud: LocalCloud, experiment: str
) -> None:
    client = IAPMlflowClient()
    run_id = client.create_run(experiment).info.run_id
    cloud.fault_rate("reset_after", 0.1, seed=1)
    cloud.fault_rate("answer_after", 0.1, seed=2, status=503)
    for step in range(40):
        client.log_metric(run_id, "m", step / 2, step=step, timestamp=1000 + step)
    cloud.clear_faults()
    assert _points(client, run_id, "m") == [(step, step / 2) for step in range(40)]
    assert {0, 503} <= {seen.status for seen in cloud.requests}


def test_only_this_package_retries(cloud: LocalCloud, experiment: str) -> None:
    """MLflow's own retries would send each request eight times."""
    client = IAPMlflowClient(max_attempts=3, deadline=30.0)
    cloud.fault("answer", path="runs/search", status=503, times=0)
    with pytest.raises(MlflowException) as caught:
        client.search_runs([experiment])
    assert caught.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert len([seen for seen in cloud.requests if "runs/search" in seen.path]) == 3


def test_the_deadline_holds_for_lookup_and_creation_together(
    cloud: LocalCloud, experiment: str
) -> None:
    client = IAPMlflowClient(deadline=1.5)
    cloud.forget()
    cloud.fault("reset_before", times=0)
    with pytest.raises(IAPUnknownOutcomeError):
        client.create_run(experiment)
    times = [seen.time for seen in cloud.requests]
    assert times[-1] - times[0] < 1.5


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """A server behind IAP that a test may stop."""
    with TrackingServer(tmp_path) as server, LocalCloud(server.url) as cloud:
        set_all(monkeypatch, cloud.environment())
        yield server


@pytest.mark.slow
def test_a_restarting_server_is_waited_for_and_a_hanging_one_creates_no_run_twice(
    own_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = IAPMlflowClient()
    experiment = client.create_experiment("e")
    run_id = client.create_run(experiment).info.run_id
    own_server.kill()
    with ThreadPoolExecutor(1) as thread:
        logged = thread.submit(client.log_metric, run_id, "m", 1.0, 5, 7)
        own_server.restart()
        logged.result(60)
    assert _points(client, run_id, "m") == [(7, 1.0)]

    # It hangs for longer than the client waits for a response, and then creates the run.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    own_server.pause()
    go_on = threading.Timer(2.5, own_server.resume)
    go_on.start()
    second = client.create_run(experiment).info.run_id
    go_on.join()
    assert {run.info.run_id for run in client.search_runs([experiment])} == {run_id, second}


def test_a_missing_role_is_both_an_iap_error_and_an_mlflow_exception(cloud: LocalCloud) -> None:
    cloud.members.clear()
    with pytest.raises(IAPRefusedError, match="httpsResourceAccessor") as caught:
        IAPMlflowClient().search_experiments()
    assert isinstance(caught.value, MlflowException)
    assert caught.value.error_code == "PERMISSION_DENIED"


def test_mlflow_s_own_errors_are_not_changed(cloud: LocalCloud) -> None:
    with pytest.raises(MlflowException, match="not found") as caught:
        IAPMlflowClient().get_run("0" * 32)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_a_client_can_be_pickled(cloud: LocalCloud, experiment: str) -> None:
    client = IAPMlflowClient(credentials=IAPCredentials(cloud.client_id))
    client.search_experiments()
    there = pickle.loads(pickle.dumps(client))
    assert there.get_experiment(experiment).experiment_id == experiment


def test_the_credentials_given_last_apply(cloud: LocalCloud, tmp_path: Path) -> None:
    other = "other@local-project.iam.gserviceaccount.com"
    file = cloud.key_file(other)
    cloud.members.add(other)
    first = IAPMlflowClient()
    first.search_experiments()
    IAPMlflowClient(credentials=IAPCredentials(cloud.client_id, key_file=file))
    first.search_experiments()
    assert cloud.requests[-1].account == other


def test_clients_with_the_same_settings_share_one_token(cloud: LocalCloud) -> None:
    for _ in range(3):
        IAPMlflowClient(audience=cloud.client_id).search_experiments()
        IAPMlflowClient().search_experiments()
    assert len(cloud.tokens) == 1


def test_correcting_a_variable_needs_no_new_process(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = str(cloud.client_id)
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", "wrong.apps.googleusercontent.com")
    client = IAPMlflowClient()
    with pytest.raises(IAPRefusedError, match="MLFLOW_IAP_CLIENT_ID"):
        client.search_experiments()
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", right)
    assert client.search_experiments()


def test_another_client_without_settings_keeps_the_given_ones(cloud: LocalCloud) -> None:
    client = IAPMlflowClient(credentials=IAPCredentials(kind="access_token"), max_attempts=2)
    IAPMlflowClient()
    cloud.fault("answer", path="experiments/search", status=503, times=0)
    with pytest.raises(MlflowException):
        client.search_experiments()
    assert [seen.status for seen in cloud.requests if seen.reached_upstream] == []
    assert len(cloud.requests) == 2
    cloud.clear_faults()
    client.search_experiments()
    assert cloud.requests[-1].token_kind == "access_token"


def test_an_invalid_server_does_not_affect_another_one(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_AUTH")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert IAPMlflowClient(cloud.url).search_experiments()


def test_an_address_in_upper_case_or_with_a_path_is_the_same_server(
    cloud: LocalCloud,
) -> None:
    client = IAPMlflowClient(cloud.url.replace("127.0.0.1", "LocalHost") + "/", max_attempts=2)
    client.search_experiments()
    cloud.forget()
    cloud.fault("answer", status=503, times=0)
    with pytest.raises(MlflowException):
        client.search_experiments()
    assert len(cloud.requests) == 2


def test_iap_s_token_replaces_that_of_mlflow_s_own_variable(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account has no role: 403, not 401."""
    other = cloud.key_file("other@local-project.iam.gserviceaccount.com")
    stale = IAPCredentials(cloud.client_id, key_file=other).token()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", stale)
    IAPMlflowClient().search_experiments()
    assert cloud.requests[-1].account == cloud.trainer


def test_an_error_is_not_taken_for_one_that_its_caller_is_handling(cloud: LocalCloud) -> None:
    client = IAPMlflowClient()
    cloud.members.clear()
    try:
        client.search_experiments()
    except IAPRefusedError:
        cloud.members.add(cloud.trainer)
        with pytest.raises(MlflowException, match="not found"):
            client.get_run("0" * 32)


def test_an_audience_is_short_for_credentials_with_this_audience(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_IAP_CLIENT_ID")
    IAPMlflowClient(audience=cloud.client_id).search_experiments()
    assert cloud.tokens[-1].audience == cloud.client_id


def test_no_token_is_in_a_debug_log_or_an_error(
    cloud: LocalCloud, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = IAPCredentials(cloud.client_id)
    auth = auth_for(cloud.url, credentials)
    tokens = []
    told = []
    with caplog.at_level(logging.DEBUG):
        client = IAPMlflowClient(deadline=1.0)
        for fault in ("answer", "reset_after", "answer_after"):
            client.search_experiments()
            tokens.append(auth.credentials.token())
            cloud.revoke_tokens()
            client.search_experiments()
            tokens.append(auth.credentials.token())
            cloud.fault(fault, status=403, from_iap=fault == "answer", times=0)
            with pytest.raises(MlflowException) as caught:
                client.create_run(experiment)
            cloud.clear_faults()
            told.append("".join(traceback.format_exception(caught.value)))
    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    everything = str([vars(record) for record in caplog.records]) + "".join(told) + repr(auth)
    assert len(set(tokens)) == 4
    assert not [token for token in tokens if token in everything]


# --- without IAP -----------------------------------------------------------------------------


def test_a_bare_server_on_localhost_needs_no_credentials(bare_server: MlflowServer) -> None:
    client = IAPMlflowClient(bare_server.url)
    experiment = client.create_experiment(uuid.uuid4().hex)
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "m", 1.0)
    assert client.get_run(run_id).data.metrics == {"m": 1.0}


@pytest.mark.slow
def test_a_database_uri_works_as_in_mlflow_s_client(tmp_path: Path) -> None:
    client = IAPMlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment, tags={"a": "b"})
    assert "mlflow_iap.run_key" not in run.data.tags
    assert "MLFLOW_TRACKING_AUTH" not in os.environ


# --- bad input -------------------------------------------------------------------------------


def test_no_tracking_uri_is_an_error() -> None:
    with pytest.raises(IAPConfigurationError, match="MLFLOW_TRACKING_URI"):
        IAPMlflowClient()


@pytest.mark.parametrize(
    "uri", ["", " ", "mlflow.example.com", "localhost:5000", "https://", "https://host:port"]
)
def test_an_invalid_url_is_an_error(uri: str) -> None:
    with pytest.raises(IAPConfigurationError, match="https://HOST"):
        IAPMlflowClient(uri)


def test_plain_http_to_another_machine_is_an_error() -> None:
    with pytest.raises(IAPConfigurationError, match="plain text"):
        IAPMlflowClient("http://mlflow.example.com")
    with pytest.raises(IAPConfigurationError, match="plain text"):
        IAPMlflowClient("https://mlflow.example.com", "http://registry.example.com")


@pytest.mark.parametrize("audience", ["", "  "])
def test_an_empty_audience_is_an_error(audience: str) -> None:
    with pytest.raises(IAPConfigurationError, match="audience is empty"):
        IAPMlflowClient("https://mlflow.example.com", audience=audience)


def test_giving_the_audience_in_two_ways_is_an_error() -> None:
    with pytest.raises(IAPConfigurationError, match="Both"):
        IAPMlflowClient("https://h.example", audience="a", credentials=IAPCredentials("b"))


@pytest.mark.parametrize("settings", [{"max_attempts": 0}, {"deadline": 0.0}])
def test_retries_that_never_send_are_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(IAPConfigurationError, match="never send"):
        IAPMlflowClient("https://h.example", **settings)  # type: ignore[arg-type]


def test_another_authentication_chosen_for_mlflow_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
    with pytest.raises(IAPConfigurationError, match="kubernetes"):
        IAPMlflowClient("https://h.example")


def test_a_broken_key_file_is_reported_at_the_first_request_and_nothing_is_lost(
    cloud: LocalCloud, experiment: str, tmp_path: Path
) -> None:
    broken = tmp_path / "key.json"
    broken.write_text("{")
    good = IAPCredentials(cloud.client_id, key_file=cloud.key_file())
    client = IAPMlflowClient(credentials=IAPCredentials(cloud.client_id, key_file=broken))
    with pytest.raises(IAPCredentialsError, match=str(broken)):
        client.create_run(experiment)
    IAPMlflowClient(credentials=good)
    run_id = client.create_run(experiment).info.run_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [run_id]


def test_the_fluent_api_uses_the_client_s_identity_from_then_on(cloud: LocalCloud) -> None:
    IAPMlflowClient()
    mlflow.search_experiments()
    assert cloud.requests[-1].account == cloud.trainer
