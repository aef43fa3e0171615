"""Chooses the worker that logs a distributed training run."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..delivery.never_raising import never_raising
from .params import value_of

_DEFAULT_PORT = 12400
# A process's rank and the number of processes, by launcher.
_LAUNCHED = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and Intel MPI
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def is_first_worker(params: Mapping[str, Any]) -> bool:
    """Whether this process is the first of the machines that train together, or the only one.

    If that is unknown, it is taken for the first: better too many log than none.
    """
    with never_raising("which worker is the first"):
        return _rank(params) in (0, None)
    return True


def _rank(params: Mapping[str, Any]) -> int | None:
    """This process's position among the machines, found as in LightGBM's ``linkers_socket.cpp``.

    LightGBM does not train over sockets if no listed address and port are its own. If no rank
    is found, LightGBM was built for MPI, or its network was set up by another library.
    """
    count = value_of(params, "num_machines")
    if count is not None and int(count) < 2:
        return None  # each machine trains on its own
    is_serial = value_of(params, "tree_learner", "serial") == "serial"
    entries = _entries(params, has_file=count is not None and not is_serial)
    given = next((entry for entry in entries if "rank=" in entry), None)
    if given is not None:
        return int(given.partition("=")[2])
    machines = [found.groups() for found in map(_MACHINE.fullmatch, entries) if found]
    port = int(value_of(params, "local_listen_port", _DEFAULT_PORT))
    ranks = [rank for rank, machine in enumerate(machines) if int(machine[1]) == port]
    for is_here in _is_bindable, _is_source:
        if len(ranks) > 1:
            ranks = [rank for rank in ranks if is_here(machines[rank][0])] or ranks
    if len(ranks) == 1:
        return ranks[0]
    started = len(machines) or (1 if is_serial else int(count or 1))
    launched = _launched_rank(started)
    return launched if launched is not None else next(iter(ranks), None)


_MACHINE = re.compile(r"\s*([^\s:]+)(?:\s*:\s*| +)(\d+)\s*")


def _entries(params: Mapping[str, Any], *, has_file: bool) -> list[str]:
    """The lines of the list of machines."""
    machines = value_of(params, "machines")
    if isinstance(machines, set):
        return sorted(machines)  # each process has its own order
    if machines:
        return machines.split(",") if isinstance(machines, str) else list(machines)
    file = value_of(params, "machine_list_filename")
    return Path(file).read_text().splitlines() if file and has_file else []


def _launched_rank(count: int) -> int | None:
    """The rank that a launcher gave to this process, if it started ``count`` processes."""
    if count < 2:
        return None
    for rank, size in _LAUNCHED:
        if os.environ.get(size) == str(count) and rank in os.environ:
            return int(os.environ[rank])
    return None


def _is_bindable(host: str) -> bool:
    """Whether this machine has the address. Its name may map to another, such as 127.0.1.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.bind((host, 0))
        return True
    return False


def _is_source(host: str) -> bool:
    """Whether this machine sends from the address; some systems bind addresses of others too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, 9))  # sends nothing
        return bool(probe.getsockname()[0] == host)
    return False
