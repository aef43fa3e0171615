"""MLflow's routes: the path by which a request is routed, and the routes that are not served."""

from __future__ import annotations

import re
import unicodedata

from starlette.types import Scope

# All are listed, even if MLflow has a setting for some, because a setting can be forgotten.
_CLOSED = re.compile(
    r"""
    /gateway(/.*)?                              # model providers called with the server's keys
    | /signup                                   # users with passwords, which are of no use here
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
    """Whether a path, as MLflow routes it, runs code or calls other services."""
    return _CLOSED.fullmatch(re.sub("/+", "/", path)) is not None


def has_control_characters(path: str) -> bool:
    """Whether a path has characters that routers understand in different ways.

    Starlette's regular expressions, for example, ignore a line feed at the end of a path.
    """
    return any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in path)


def routed_path(scope: Scope, static_prefix: str) -> str:
    """Return a request's path without the prefixes that the operator has configured."""
    path: str = scope["path"]
    for prefix in (scope.get("root_path", ""), static_prefix):
        if prefix and path.startswith(prefix.rstrip("/") + "/"):
            path = path[len(prefix.rstrip("/")) :]
    return path
