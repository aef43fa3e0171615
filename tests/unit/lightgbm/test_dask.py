"""Which process logs distributed training."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_iap_callbacks.lightgbm.dask import is_first_worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The Dask worker in which the test runs."""
    found = SimpleNamespace(address="tcp://10.0.0.1:8786")
    distributed: Any = SimpleNamespace(get_worker=lambda: found)
    monkeypatch.setitem(sys.modules, "distributed", distributed)
    return found


@pytest.fixture
def no_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "distributed", raising=False)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"machines": None},
        {"machines": ""},
        {"machines": "10.0.0.1:12400", "local_listen_port": 12400},
        {"num_machines": 1, "local_listen_port": 12400},
    ],
)
def test_training_on_one_machine_is_logged(params: dict[str, Any]) -> None:
    assert is_first_worker(params)


def test_the_first_of_several_workers_with_different_ports_logs() -> None:
    machines = "10.0.0.1:12400,10.0.0.1:12401,10.0.0.2:12402"
    found = [
        is_first_worker({"machines": machines, "local_listen_port": port})
        for port in (12400, 12401, 12402)
    ]
    assert found == [True, False, False]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://10.0.0.1:8786", True),
        ("tls://10.0.0.1:9999", True),
        ("tcp://10.0.0.2:8786", False),
        ("tcp://10.0.0.11:8786", False),
    ],
)
def test_the_dask_worker_with_the_first_address_logs_if_all_have_the_same_port(
    worker: SimpleNamespace, address: str, expected: bool
) -> None:
    worker.address = address
    machines = "10.0.0.1:12400,10.0.0.2:12400"
    assert is_first_worker({"machines": machines, "local_listen_port": 12400}) is expected


@pytest.mark.usefixtures("no_dask")
def test_the_worker_on_the_first_machine_logs_without_dask() -> None:
    here = socket.gethostname()
    for machines, expected in (
        (f"{here}:12400,elsewhere:12400", True),
        (f"elsewhere:12400,{here}:12400", False),
    ):
        assert is_first_worker({"machines": machines, "local_listen_port": 12400}) is expected
