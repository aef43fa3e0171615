"""Which process logs distributed training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_iap_callbacks.lightgbm.workers import is_first_worker

_HERE, _ELSEWHERE = "127.0.0.1", "198.51.100.7"  # the second is reserved for documentation


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"machines": None},
        {"machines": ""},
        {"machines": "10.0.0.1:12400", "local_listen_port": 12400},
        {"num_machines": 1, "local_listen_port": 12400},
        {"num_machines": 1, "machines": f"{_ELSEWHERE}:12400,{_HERE}:12400"},
        {"num_machines": 2, "machine_list_filename": "missing", "tree_learner": "serial"},
    ],
)
def test_training_on_one_machine_is_logged(params: dict[str, Any]) -> None:
    assert is_first_worker(params)


@pytest.mark.parametrize("name", ["machines", "workers", "nodes"])
@pytest.mark.parametrize("port", ["local_listen_port", "local_port", "port"])
def test_the_first_of_several_workers_with_different_ports_logs(name: str, port: str) -> None:
    machines = "10.0.0.1:12401,10.0.0.1:12402,10.0.0.2:12403"
    found = [is_first_worker({name: machines, port: at}) for at in (12401, "12402", 12403)]
    assert found == [True, False, False]


def test_the_port_is_lightgbms_default_if_none_is_given() -> None:
    machines = [f"{_HERE}:12400", f"{_HERE}:12401"]
    assert is_first_worker({"machines": ",".join(machines)})
    assert not is_first_worker({"machines": ",".join(reversed(machines))})


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(_HERE, _ELSEWHERE, True), (_ELSEWHERE, _HERE, False)]
)
@pytest.mark.parametrize("form", ["text", "blanks", "list", "set", "file", "alias of the file"])
def test_the_worker_on_the_first_machine_logs_if_all_have_the_same_port(
    tmp_path: Path, form: str, first: str, second: str, expected: bool
) -> None:
    lines = [f"{first}:12400", f"{second}:12400"]
    file = tmp_path / "machines.txt"
    file.write_text(f"{first} 12400\n{second} 12400\n")
    is_parallel = {"num_machines": 2, "tree_learner": "data"}
    forms: dict[str, dict[str, Any]] = {
        "text": {"machines": ",".join(lines)},
        "blanks": {"machines": f" {first} : 12400 , {second} : 12400 "},
        "list": {"machines": lines},
        "set": {"machines": set(lines)},
        "file": {"machine_list_filename": str(file), **is_parallel},
        "alias of the file": {"mlist": file, "num_machine": "2", "tree_learner_type": "voting"},
    }
    params = forms[form]
    if form != "set":
        assert is_first_worker(params) is expected
    else:  # sets have no first machine, but all workers must agree on one
        assert is_first_worker(params) is (min(first, second) == _HERE)


@pytest.mark.parametrize(("rank", "expected"), [(0, True), (1, False)])
def test_a_rank_in_the_list_of_machines_decides(rank: int, expected: bool) -> None:
    machines = f"rank={rank},{_ELSEWHERE}:12400,{_HERE}:12400"
    assert is_first_worker({"machines": machines}) is expected


@pytest.mark.parametrize(
    "params",
    [
        {"machines": f"{_ELSEWHERE}:12400,203.0.113.9:12400"},
        {"machines": f"{_HERE}:12401,{_HERE}:12402"},
        {"machines": f"{_HERE}:12401,{_HERE}:12402", "port": "none"},
        {"machines": 3},
        {"machine_list_filename": "missing", "num_machines": 2, "tree_learner": "data"},
    ],
)
def test_a_worker_logs_rather_than_nobody_if_the_first_one_cannot_be_known(
    params: dict[str, Any],
) -> None:
    assert is_first_worker(params)


_LAUNCHERS = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    def launched(launcher: str, rank: str, size: str) -> None:
        monkeypatch.setenv(_LAUNCHERS[launcher][0], rank)
        monkeypatch.setenv(_LAUNCHERS[launcher][1], size)

    for name in [each for names in _LAUNCHERS.values() for each in names]:
        monkeypatch.delenv(name, raising=False)
    return launched


_WITHOUT_RANK: list[dict[str, Any]] = [
    {"num_machines": 2, "tree_learner": "data"},  # LightGBM built for MPI
    {"machines": f"{_ELSEWHERE}:12400,203.0.113.9:12400"},
    {"machines": f"{_HERE}:12401,{_HERE}:12402"},
    {"machines": "one:12400,other:12400"},
]


@pytest.mark.parametrize("launcher", _LAUNCHERS)
@pytest.mark.parametrize("params", _WITHOUT_RANK)
def test_the_launcher_s_rank_decides_if_the_list_of_machines_does_not(
    launch: Callable[[str, str, str], None], launcher: str, params: dict[str, Any]
) -> None:
    launch(launcher, "0", "2")
    assert is_first_worker(params)
    launch(launcher, "1", "2")
    assert not is_first_worker(params)


@pytest.mark.parametrize("params", _WITHOUT_RANK)
def test_a_launcher_of_another_number_of_processes_does_not_decide(
    launch: Callable[[str, str, str], None], params: dict[str, Any]
) -> None:
    launch("Slurm", "1", "3")
    assert is_first_worker(params)
    launch("Slurm", "one", "2")
    assert is_first_worker(params)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"num_machines": 1, "tree_learner": "data"},
        {"num_machines": 2},  # LightGBM's default tree learner is serial
        {"machines": f"{_HERE}:12400"},
    ],
)
def test_processes_of_a_launcher_that_train_separately_all_log(
    launch: Callable[[str, str, str], None], params: dict[str, Any]
) -> None:
    launch("Slurm", "1", "2")
    assert is_first_worker(params)


def test_the_list_of_machines_comes_before_the_launcher(
    launch: Callable[[str, str, str], None],
) -> None:
    launch("Slurm", "1", "2")
    assert is_first_worker({"machines": f"{_HERE}:12400,{_ELSEWHERE}:12400"})


def test_one_worker_logs_on_a_system_that_binds_every_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlflow_iap_callbacks.lightgbm.workers._is_bindable", lambda host: True)
    assert not is_first_worker({"machines": f"{_ELSEWHERE}:12400,{_HERE}:12400"})
    assert is_first_worker({"machines": f"{_HERE}:12400,{_ELSEWHERE}:12400"})
