"""What the gate answers in place of closed routes that MLflow's own pages ask for.

The answers are those of an MLflow in which the feature is empty or off. Without them, the pages
show errors about features that nobody uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_API = re.compile(r"/(ajax-)?api/\d+\.\d+/(mlflow/)?(?P<call>.*?)/?", re.DOTALL)
_ANSWERS: Mapping[tuple[str, str], Any] = {
    ("GET", "gateway-proxy"): {"endpoints": []},
    ("GET", "gateway/endpoints/list"): {"endpoints": []},
    ("GET", "gateway/endpoints/bindings/list"): {"bindings": []},
    ("GET", "gateway/secrets/list"): {"secrets": []},
    ("GET", "gateway/secrets/config"): {
        "secrets_available": False,
        "using_default_passphrase": False,
    },
    ("GET", "gateway/model-definitions/list"): {"model_definitions": []},
    ("GET", "gateway/budgets/list"): {"budget_policies": []},
    ("GET", "gateway/budgets/windows"): {"windows": []},
    ("GET", "gateway/guardrails/list"): {"guardrails": []},
    ("GET", "gateway/supported-providers"): {"providers": []},
    ("GET", "gateway/supported-models"): {"models": []},
    ("GET", "users/current"): {"user": None},
    ("GET", "webhooks"): {},
    ("GET", "assistant/config"): {"providers": {}, "projects": {}, "remote_access_allowed": False},
    ("GET", "assistant/providers"): {
        "providers": [],
        "resolved": None,
        "gateway_vendor_options": {},
    },
    ("GET", "mcp-servers"): {"mcp_servers": [], "next_page_token": None},
    ("GET", "mcp-servers/endpoints"): {"mcp_access_endpoints": [], "next_page_token": None},
    ("GET", "scorers/online-configs"): {"configs": []},
    ("GET", "prompt-optimization/jobs/search"): {"jobs": []},
    ("POST", "prompt-optimization/jobs/search"): {"jobs": []},
    ("GET", "ui-telemetry"): {
        "disable_ui_events": [],
        "disable_ui_telemetry": True,
        "ui_rollout_percentage": 0,
    },
}


def stand_in_for(method: str, path: str) -> Any:
    """Return the answer to a request for a closed route, as JSON; None if there is none."""
    found = _API.fullmatch(re.sub("/+", "/", path))
    return found and _ANSWERS.get((method.upper(), found["call"]))
