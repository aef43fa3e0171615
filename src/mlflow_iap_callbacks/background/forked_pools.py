"""Renews thread pools of MLflow's autologging in forked processes, where they would wait for ever.

A pool starts no thread while it counts an idle one, and a fork copies the count but no threads. If
requests are slow, the pool of a parent is seldom idle. In the background it nearly always is: then
Lightning's strategies that fork, such as ``ddp_notebook``, never began to train.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

_POOLS = {
    "mlflow.utils.autologging_utils.client": "_AUTOLOGGING_QUEUEING_CLIENT_THREAD_POOL",
    "mlflow.utils.autologging_utils.metrics_queue": "_thread_pool",
}


def _after_fork() -> None:
    for module, name in _POOLS.items():
        pool = getattr(sys.modules.get(module), name, None)
        if isinstance(pool, ThreadPoolExecutor):
            new = ThreadPoolExecutor(pool._max_workers, pool._thread_name_prefix or "")
            setattr(sys.modules[module], name, new)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
