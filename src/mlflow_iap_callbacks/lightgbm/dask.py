"""Chooses the worker that logs a distributed training run."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import Any


def is_first_worker(params: Mapping[str, Any]) -> bool:
    """Whether this process is the first of the ``machines`` that train, or the only one."""
    machines = str(params.get("machines") or "").split(",")
    port = str(params.get("local_listen_port"))
    if len(machines) < 2:
        return True
    first, _, first_port = machines[0].rpartition(":")
    if port != first_port:
        return False
    if sum(machine.endswith(f":{port}") for machine in machines) == 1:
        return True
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        address = distributed.get_worker().address
        return bool(address.rpartition("://")[2].rpartition(":")[0] == first)
    return first in {socket.gethostname(), *socket.gethostbyname_ex(socket.gethostname())[2]}
