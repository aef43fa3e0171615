"""The routes of MLflow that run code or call out, which a tracking server does without."""

from __future__ import annotations

import re

# In one place, whether or not MLflow has a switch for them: a switch can be forgotten.
_CLOSED = re.compile(
    r"""
    /gateway(/.*)?                              # model providers called with the server's keys
    | /signup                                   # users with passwords, which open nothing here
    | /(ajax-)?api/\d+\.\d+/jobs(/.*)?          # functions run in processes of the server
    | /(ajax-)?api/\d+\.\d+/mlflow/(
        assistant                               # an agent with a shell on the server
        | demo
        | gateway | gateway-proxy
        | genai
        | issues/invoke
        | jobs
        | mcp-servers
        | prompt-optimization
        | runs/create-promptlab-run
        | scorer | scorers/online-configs?      # judges that call models
        | ui-telemetry
        | users/create-ui
        | webhooks                              # requests to URLs that users choose
    )(/.*)?
    """,
    re.VERBOSE | re.DOTALL,
)


def is_closed(path: str) -> bool:
    """Whether a path, as MLflow routes it, belongs to what is not served."""
    return _CLOSED.fullmatch(re.sub("/+", "/", path)) is not None
