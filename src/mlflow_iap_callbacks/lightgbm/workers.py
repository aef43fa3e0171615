"""Chooses the worker that logs a distributed training run."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..delivery.never_raising import never_raising
from .params import value_of

_DEFAULT_PORT = 12400


def is_first_worker(params: Mapping[str, Any]) -> bool:
    """Whether this process is the first of the machines that train together, or the only one.

    If that cannot be known, every process on the first machine's port is taken for the first.
    """
    with never_raising("which worker is the first"):
        return _rank(params) in (0, None)
    return True


def _rank(params: Mapping[str, Any]) -> int | None:
    """This process's position among the machines, found as in LightGBM's ``linkers_socket.cpp``."""
    entries = _entries(params)
    given = next((entry for entry in entries if "rank=" in entry), None)
    if given is not None:
        return int(given.partition("=")[2])
    machines = [found.groups() for found in map(_MACHINE.fullmatch, entries) if found]
    port = int(value_of(params, "local_listen_port", _DEFAULT_PORT))
    ranks = [rank for rank, machine in enumerate(machines) if int(machine[1]) == port]
    if len(ranks) > 1:
        ranks = [rank for rank in ranks if _is_here(machines[rank][0])] or ranks
    return ranks[0] if ranks else None


_MACHINE = re.compile(r"\s*([^\s:]+)(?:\s*:\s*| +)(\d+)\s*")


def _entries(params: Mapping[str, Any]) -> list[str]:
    """The lines of the list of machines; none if each machine trains on its own."""
    machines = value_of(params, "machines")
    count = value_of(params, "num_machines")
    if count is not None and int(count) < 2:
        return []
    if isinstance(machines, set):
        return sorted(machines)  # each process has its own order
    if machines:
        return machines.split(",") if isinstance(machines, str) else list(machines)
    file = value_of(params, "machine_list_filename")
    if not file or count is None or value_of(params, "tree_learner", "serial") == "serial":
        return []
    return Path(file).read_text().splitlines()


def _is_here(host: str) -> bool:
    """Whether this machine has the address. Its name may have another one, such as 127.0.1.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True
