"""The POST endpoints of MLflow's REST API that may be requested repeatedly.

A repeated request reads, sets or deletes what the first one did, adds to a set, or creates
something with a unique name or id. At worst, the response says that it already exists, or is gone.
"""

from __future__ import annotations

import re

# As in MLflow's protobuf; {} stands for a name or an id.
_REPEATABLE = {
    "experiments": "create delete delete-experiment-tag restore search search-datasets "
    "set-experiment-tag update",
    "runs": "delete delete-tag log-batch log-inputs log-metric log-model log-parameter outputs "
    "restore search set-tag update",
    "traces": "batchGetInfos calculate-filter-correlation delete-traces link-prompts link-to-run "
    "metrics search",
    "logged-models": "search {}/params",
    "registered-models": "alias create get-latest-versions rename set-tag",
    "model-versions": "set-tag transition-stage",
    "datasets": "search {}/add-experiments {}/records {}/remove-experiments",
    "artifacts": "presigned-download-url presigned-upload-url",
    "issues": "search",
    "label-schemas": "create",
    "review-queues": "create delete get-or-create-user items/add items/remove items/set-status "
    "update",
    "prompt-optimization/jobs": "search {}/cancel",
    "gateway": "budgets/update endpoints/create endpoints/models/attach endpoints/models/detach "
    "endpoints/set-tag endpoints/update guardrails/add-to-endpoint model-definitions/create "
    "model-definitions/update secrets/create secrets/update",
}
_PATHS = [f"{group}/{path}" for group, paths in _REPEATABLE.items() for path in paths.split()]
_PATTERN = re.compile(
    "|".join(
        (
            # MLflow's client sends one of them to /api/2.0mlflow/.
            rf"(?:/|\d\.\d)mlflow/(?:{'|'.join(map(re.escape, _PATHS))})/?$".replace(
                re.escape("{}"), "[^/]+"
            ),
            # A trace of version 3 has an id; a span has one as well.
            r"/api/3\.0/mlflow/traces$|/v1/traces$",
            r"/mlflow/(?:workspaces|mcp-servers)$|/jobs/search$",
            # Their names contain a slash.
            r"/mlflow/mcp-servers/.+/(?:aliases|tags|versions)$",
            r"/mlflow-artifacts/mpu/(?:abort|complete|create)(?:/|$)",
        )
    )
)


def is_repeatable(path: str) -> bool:
    """Whether a POST to a path has the same effect no matter how often it is sent."""
    return _PATTERN.search(path) is not None
