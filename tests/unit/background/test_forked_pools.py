"""Thread pools of MLflow's autologging in forked processes."""

from __future__ import annotations

from importlib import import_module

import pytest

from forked_test import in_forked_child
from mlflow_iap_callbacks.background import forked_pools
from waiting import wait_until


@pytest.mark.forked
@pytest.mark.parametrize(("module", "name"), forked_pools._POOLS.items())
def test_a_forked_process_can_use_a_pool_whose_threads_were_idle_in_its_parent(
    module: str, name: str
) -> None:
    def works() -> None:
        assert getattr(import_module(module), name).submit(int).result(10.0) == 0

    works()
    pool = getattr(import_module(module), name)
    wait_until(lambda: pool._idle_semaphore._value > 0, "an idle thread")
    in_forked_child(works, {})
