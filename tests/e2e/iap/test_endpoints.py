"""Which requests may be repeated: each POST route of MLflow's server is in a table."""

from __future__ import annotations

import pytest

import python_process
from endpoint_table import is_classified

_ROUTES = """
import mlflow.server
from mlflow.server.fastapi_app import create_fastapi_app
paths = [rule.rule for rule in mlflow.server.app.url_map.iter_rules() if "POST" in rule.methods]
routes = create_fastapi_app(mlflow.server.app).openapi()["paths"]
print(*paths, *(path for path, methods in routes.items() if "post" in methods), sep="\\n")
"""


@pytest.mark.slow
def test_every_post_route_of_mlflow_s_server_is_in_one_table() -> None:
    done = python_process.run("-c", _ROUTES)
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split()
    assert len(paths) > 40
    assert not [path for path in sorted(paths) if not is_classified(path)]
