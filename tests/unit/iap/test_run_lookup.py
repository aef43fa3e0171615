"""Which run is found by its key if several runs have that key."""

from __future__ import annotations

import pytest

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.iap.run_lookup import find_run
from mlflow_iap_callbacks.tags import RUN_KEY_TAG


@pytest.mark.parametrize("deleted", [0, 1])
def test_a_run_that_is_not_deleted_is_found_before_a_deleted_duplicate(
    deleted: int,
) -> None:
    server = FakeMlflow()
    client = FakeClient(server)
    made = [client.create_run("0", 1000, {RUN_KEY_TAG: "key"}).info.run_id for _ in range(2)]
    client.delete_run(made[deleted])
    found = find_run(client, "0", "key")
    assert found is not None
    assert found.info.run_id == made[1 - deleted]


def test_a_deleted_run_is_found_if_there_is_no_other() -> None:
    server = FakeMlflow()
    client = FakeClient(server)
    run_id = client.create_run("0", 1000, {RUN_KEY_TAG: "key"}).info.run_id
    client.delete_run(run_id)
    found = find_run(client, "0", "key")
    assert found is not None
    assert found.info.run_id == run_id
    assert find_run(client, "0", "another") is None
