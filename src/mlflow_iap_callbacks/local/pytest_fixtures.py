"""pytest fixtures: a real MLflow server behind a local IAP, for the tests of other projects.

pytest imports this module at its start, so heavy modules are imported inside the fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from . import LocalCloud, MlflowServer


@pytest.fixture(scope="session")
def iap_mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server in a temporary folder, without IAP, for all tests of the session."""
    from . import MlflowServer

    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def iap_cloud(
    iap_mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[LocalCloud]:
    """IAP in front of the MLflow server. Environment variables let clients use it in this test."""
    from . import LocalCloud
    from .client_environment import FOREIGN_VARIABLES, client_environment

    # The process would use a client id for the IAP of its first test only.
    with LocalCloud(iap_mlflow_server.url, client_id=None) as cloud:
        for name in FOREIGN_VARIABLES:
            monkeypatch.setenv(name, "")  # so that it is unset again if the test sets it
            monkeypatch.delenv(name)
        monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(tmp_path / "outbox"))
        for name, value in client_environment(cloud).items():
            monkeypatch.setenv(name, value)
        yield cloud
