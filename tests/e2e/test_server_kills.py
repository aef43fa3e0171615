"""Kills of the deployed server and of its database: what was acknowledged is there."""

from __future__ import annotations

from deployment import Deployment, deployment
from ledger import Ledger
from server_database import needs_mariadb

pytestmark = needs_mariadb
__all__ = ["deployment"]


def test_a_kill_of_the_database_and_one_of_the_server_lose_nothing_and_end_no_client(
    deployment: Deployment,
) -> None:
    with Ledger(clients=2) as ledger:
        for victim in (deployment.mariadb, deployment.server):
            ledger.wait_for_more(10)
            victim.kill()
            victim.restart()
        ledger.wait_for_more(1)
    assert ledger.wrong(deployment.mariadb, deployment.database) == []
