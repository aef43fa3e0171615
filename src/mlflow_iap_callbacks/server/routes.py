"""The routes of MLflow that are served, and the rules for the bodies of their requests.

What is not in the table is closed: it runs code, calls other services with the server's own
account, or belongs to a version of MLflow that nobody has reviewed yet.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from . import locations, ownership, webhooks
from .locations import Named
from .ownership import Rule

# MLflow's largest JSON body, a full `log_batch`, is about 1 MB.
_MAX_BODY_BYTES = 8 * 1024 * 1024
# Records of a dataset may be as large as the platform's limit for requests.
MAX_RECORDS_BYTES = 32 * 1024 * 1024


# What a route may need.
PERMISSIONS = "permissions"
WEBHOOKS = "webhooks"


@dataclass(frozen=True)
class Route:
    """A route that is served.

    Attributes:
        path: regular expression of its path.
        methods: its HTTP methods.
        owner: rewrites the body so that it names the sender; None if it cannot name an owner.
        named: yields the locations of artifacts in the body; None if it cannot name one.
        max_body: number of bytes that the body may have if there is a rule for it.
        urls: yields the URLs in the body to which MLflow sends requests; None if there are none.
        needs: the feature without which the route is closed, if any.
        has_spans: whether the body has spans, which may be compressed.
    """

    path: re.Pattern[str]
    methods: frozenset[str]
    owner: Rule | None = None
    named: Named | None = None
    max_body: int = _MAX_BODY_BYTES
    urls: Named | None = None
    needs: str = ""
    has_spans: bool = False

    @property
    def has_rules(self) -> bool:
        return any((self.owner, self.named, self.urls))


def route_of(method: str, path: str) -> Route | None:
    """Return the route of a request, with the path that MLflow routes; None if it is closed."""
    path = re.sub("/+", "/", path)
    method = method.upper()  # as Flask does
    method = "GET" if method == "HEAD" else method
    for route in ROUTES:
        if method in route.methods and route.path.fullmatch(path):
            return route
    return None


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


def _page(path: str, methods: str = "GET", **others: Any) -> Route:
    return Route(re.compile(path), frozenset(methods.split()), **others)


def _call(
    path: str,
    methods: str,
    owner: Rule | None = None,
    named: Named | None = None,
    **others: Any,
) -> Route:
    pattern = re.compile(rf"/(ajax-)?api/\d+\.\d+/mlflow/(?:{path})/?")
    return Route(pattern, frozenset(methods.split()), owner, named, **others)


ROUTES = (
    _call("runs/get", "GET"),
    _call("runs/(search|update|delete|restore)", "POST"),
    _call("runs/(log-metric|log-parameter|log-inputs|log-model|outputs)", "POST"),
    _call("runs/create", "POST", ownership.new_run),
    _call("runs/log-batch", "POST", ownership.tags),
    _call("(runs|registered-models|model-versions)/set-tag", "POST", ownership.one_tag),
    _call(
        "(runs|registered-models|model-versions)/delete-tag", "POST DELETE", ownership.deleted_tag
    ),
    _call("metrics/(get-history|get-history-bulk|get-history-bulk-interval)", "GET"),
    _call("artifacts/list", "GET"),
    _call("artifacts/presigned-(up|down)load-url", "POST"),
    _call("upload-artifact", "POST"),
    _call("experiments/(get|get-by-name)", "GET"),
    _call("experiments/search", "GET POST"),
    _call("experiments/(search-datasets|update|delete|restore)", "POST"),
    _call("experiments/create", "POST", ownership.new, locations.artifact_location),
    _call("experiments/set-experiment-tag", "POST", ownership.one_tag),
    _call("experiments/delete-experiment-tag", "POST", ownership.deleted_tag),
    _call("registered-models/(get|search)", "GET"),
    _call("registered-models/get-latest-versions", "GET POST"),
    _call("registered-models/alias", "GET POST DELETE"),
    _call("registered-models/rename", "POST"),
    _call("registered-models/update", "PATCH"),
    _call("registered-models/delete", "DELETE"),
    _call("registered-models/create", "POST", ownership.new),
    _call("model-versions/(get|search|get-download-uri)", "GET"),
    _call("model-versions/transition-stage", "POST"),
    _call("model-versions/update", "PATCH"),
    _call("model-versions/delete", "DELETE"),
    _call("model-versions/create", "POST", ownership.new, locations.source),
    _call("logged-models", "POST", ownership.new),
    _call("logged-models/search", "POST"),
    _call("logged-models/[^/]+", "GET PATCH DELETE"),
    _call("logged-models/[^/]+/artifacts/(directories|files)", "GET"),
    _call("logged-models/[^/]+/params", "POST"),
    _call("logged-models/[^/]+/tags", "PATCH", ownership.tags),
    _call("logged-models/[^/]+/tags/[^/]+", "DELETE"),
    _call("traces", "GET"),
    _call("traces", "POST", ownership.new_trace),
    _call("traces/(get|batchGet)", "GET"),
    _call("traces/(search|metrics|batchGetInfos|calculate-filter-correlation)", "POST"),
    _call("traces/(delete-traces|link-prompts|link-to-run)", "POST"),
    _call("traces/[^/]+(/info)?", "GET"),
    _call("traces/[^/]+", "PATCH", ownership.ended_trace),
    _call("traces/[^/]+/tags", "PATCH", ownership.tag_of_trace),
    _call("traces/[^/]+/tags", "DELETE", ownership.deleted_tag_of_trace),
    _call("traces/[^/]+/assessments(/[^/]+)?", "POST PATCH", ownership.assessment),
    _call("traces/[^/]+/assessments/[^/]+", "GET DELETE"),
    _call("(get-trace-artifact|get-online-trace-details|unified-traces)", "GET"),
    _call("datasets/create", "POST", ownership.new_dataset),
    _call("datasets/search", "GET POST"),
    _call("datasets/[^/]+", "GET DELETE"),
    _call("datasets/[^/]+/experiment-ids", "GET"),
    _call("datasets/[^/]+/(add|remove)-experiments", "POST"),
    _call("datasets/[^/]+/tags", "PATCH", ownership.dataset_tags),
    _call("datasets/[^/]+/tags/[^/]+", "DELETE"),
    _call("datasets/[^/]+/records", "POST", ownership.dataset_records, max_body=MAX_RECORDS_BYTES),
    _call("datasets/[^/]+/records", "GET DELETE"),
    _call("scorers/(get|list|versions)", "GET"),
    _call("scorers/register", "POST"),
    _call("scorers/delete", "DELETE"),
    _call("issues", "POST", ownership.created_by),
    _call("issues/search", "POST"),
    _call("issues/[^/]+", "GET"),
    _call("issues/[^/]+", "PATCH", ownership.last_updated_by),
    _call("label-schemas/(get|get-by-name|list)", "GET"),
    _call("label-schemas/create", "POST"),
    _call("label-schemas/update", "PATCH"),
    _call("label-schemas/delete", "DELETE"),
    _call("review-queues/(get|get-by-name|list|items/list)", "GET"),
    _call("review-queues/create", "POST", ownership.created_by),
    _call("review-queues/(delete|update|get-or-create-user|items/add|items/remove)", "POST"),
    _call("review-queues/items/set-status", "POST", ownership.completed_by),
    _call("server-info", "GET"),
    _call("workspaces(/[^/]+)?", "GET"),
    _call("workspaces(/[^/]+)?", "POST PUT PATCH", None, locations.workspace),
    _call("workspaces/[^/]+", "DELETE"),
    _call("users/(get|list|current|current/permissions|roles/list)", "GET", needs=PERMISSIONS),
    _call("users/create", "POST", needs=PERMISSIONS),
    _call("users/update-(password|admin)", "PATCH", needs=PERMISSIONS),
    _call("users/delete", "DELETE", needs=PERMISSIONS),
    _call("users/permissions/(get|list)", "GET", needs=PERMISSIONS),
    _call("users/permissions/(grant|revoke)", "POST", needs=PERMISSIONS),
    _call("roles/(get|list|permissions/list|users/list)", "GET", needs=PERMISSIONS),
    _call("roles/(create|assign|permissions/add)", "POST", needs=PERMISSIONS),
    _call("roles/(update|permissions/update)", "PATCH", needs=PERMISSIONS),
    _call("roles/(delete|unassign|permissions/remove)", "DELETE", needs=PERMISSIONS),
    _call("webhooks", "POST", urls=webhooks.urls, needs=WEBHOOKS),
    _call("webhooks/[^/]+", "PATCH", urls=webhooks.urls, needs=WEBHOOKS),
    _call("webhooks(/[^/]+)?", "GET", needs=WEBHOOKS),
    _call("webhooks/[^/]+", "DELETE", needs=WEBHOOKS),
    _call("webhooks/[^/]+/test", "POST", needs=WEBHOOKS),
    _page("/|/(static-files|build)/.+|/health|/version"),
    _page("/graphql", "GET POST"),
    _page("/v1/traces", "POST", has_spans=True),
    _page("(/model-versions)?/get-artifact"),
    _page(r"/(ajax-)?api/\d+\.\d+/mlflow-artifacts/artifacts/?"),
    _page(r"/(ajax-)?api/\d+\.\d+/mlflow-artifacts/artifacts/.+", "GET PUT DELETE"),
    _page(r"/(ajax-)?api/\d+\.\d+/mlflow-artifacts/mpu/(create|complete|abort)/.+", "POST"),
    _page(r"/(ajax-)?api/\d+\.\d+/mlflow-artifacts/presigned/.+"),
)
