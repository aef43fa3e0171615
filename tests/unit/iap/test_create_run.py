"""``IAPMlflowClient.create_run`` when responses are lost: one run, and how long it takes."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from fake_mlflow import FakeMlflow, FakePlainClient
from mlflow_iap_callbacks import IAPMlflowClient, IAPUnavailableError, IAPUnknownOutcomeError
from mlflow_iap_callbacks.iap.mlflow_plugin import auth_for
from mlflow_iap_callbacks.tags import ASKED_TWICE_TAG, RUN_KEY_TAG
from virtual_time import VirtualTime

_URI = "https://mlflow.example"
_KEY = "k" * 32


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def server() -> FakeMlflow:
    return FakeMlflow(_URI)


@pytest.fixture
def client(server: FakeMlflow, time: VirtualTime) -> IAPMlflowClient:
    """A client that sends requests to the fake server, and waits without taking time."""
    auth_for(_URI, retry=time.policy())
    client = IAPMlflowClient(_URI)
    requests: Any = FakePlainClient(server)
    client._tracking_client = requests
    return client


def _create(client: IAPMlflowClient, **tags: str) -> str:
    return str(client.create_run("0", tags={RUN_KEY_TAG: _KEY, **tags}).info.run_id)


def test_a_run_gets_the_key_in_its_tags_or_a_new_one(
    client: IAPMlflowClient, server: FakeMlflow
) -> None:
    assert client.create_run("0", tags={RUN_KEY_TAG: _KEY, "a": "b"}).data.tags["a"] == "b"
    keys = {client.create_run("0").data.tags[RUN_KEY_TAG] for _ in range(2)} | {_KEY}
    assert len(keys) == len(server.runs) == 3
    assert server.calls == ["create_run"] * 3


def test_a_run_whose_response_was_lost_is_found_and_not_created_again(
    client: IAPMlflowClient, server: FakeMlflow
) -> None:
    server.lose_answer("create_run")
    run_id = _create(client)
    assert server.run(_KEY).run_id == run_id
    assert ASKED_TWICE_TAG not in server.run(_KEY).tags
    assert server.calls == ["create_run", "search_runs"]


def test_a_run_that_its_server_has_not_created_is_requested_again_after_ten_seconds(
    client: IAPMlflowClient, server: FakeMlflow, time: VirtualTime
) -> None:
    began = time.now
    server.drop("create_run", IAPUnknownOutcomeError("lost"))
    _create(client)
    assert server.run(_KEY).tags[ASKED_TWICE_TAG] == "true"
    assert server.calls.count("create_run") == 2
    assert began + 10.0 <= time.now < began + 60.0


def test_a_server_that_takes_too_long_gets_half_of_the_deadline(
    client: IAPMlflowClient, server: FakeMlflow, time: VirtualTime
) -> None:
    began = time.now
    server.drop("create_run", IAPUnknownOutcomeError("lost", is_under_way=True))
    _create(client)
    assert server.run(_KEY).tags[ASKED_TWICE_TAG] == "true"
    assert began + 60.0 <= time.now < began + 120.0


def test_waiting_for_the_run_does_not_count_as_an_attempt(
    client: IAPMlflowClient, server: FakeMlflow, time: VirtualTime
) -> None:
    auth_for(_URI, retry=time.policy(max_attempts=2))
    server.drop("create_run", IAPUnknownOutcomeError("lost"))
    _create(client)
    assert server.calls.count("create_run") == 2


def test_the_caller_gets_a_run_that_the_server_creates_late(
    client: IAPMlflowClient, server: FakeMlflow
) -> None:
    server.delay("create_run")
    server.on_request = lambda method: server.catch_up() if len(server.calls) > 2 else None
    run_id = _create(client)
    assert server.run(_KEY).run_id == run_id
    assert server.calls.count("create_run") == 1


def test_the_lookup_of_the_run_is_retried_too(client: IAPMlflowClient, server: FakeMlflow) -> None:
    server.lose_answer("create_run")
    server.drop("search_runs", times=3)
    run_id = _create(client)
    assert server.run(_KEY).run_id == run_id
    assert server.calls == ["create_run", *["search_runs"] * 4]


def test_retry_after_is_respected_before_the_run_is_looked_up(
    client: IAPMlflowClient, server: FakeMlflow, time: VirtualTime
) -> None:
    server.lose_answer("create_run", IAPUnknownOutcomeError("busy", retry_after=7.0))
    _create(client)
    assert time.waits == [7.0]


def test_the_deadline_holds_for_creation_and_lookup_together(
    client: IAPMlflowClient, server: FakeMlflow, time: VirtualTime
) -> None:
    began = time.now
    server.drop("create_run", IAPUnknownOutcomeError("lost"), times=100)
    with pytest.raises(IAPUnknownOutcomeError, match="lost"):
        _create(client)
    assert began + 60.0 < time.now < began + 120.0
    assert server.runs == {}


def test_an_error_other_than_a_lost_response_is_raised_at_once(
    client: IAPMlflowClient, server: FakeMlflow, time: VirtualTime
) -> None:
    server.drop("create_run", IAPUnavailableError("away"))
    with pytest.raises(IAPUnavailableError, match="away"):
        _create(client)
    server.refuse("create_run", "Invalid experiment")
    with pytest.raises(MlflowException, match="Invalid experiment"):
        _create(client)
    assert (server.calls, time.waits) == (["create_run"] * 2, [])


def test_the_caller_s_tags_are_not_changed(client: IAPMlflowClient, server: FakeMlflow) -> None:
    tags = {"a": "b"}
    server.drop("create_run", IAPUnknownOutcomeError("lost"))
    client.create_run("0", tags=tags)
    assert tags == {"a": "b"}
