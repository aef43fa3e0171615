"""Which requests the gate passes to MLflow, and which headers it removes."""

from __future__ import annotations

import asyncio
import re
import runpy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import routing
from starlette.routing import Mount

from asgi import Answer, Recorder, call
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server.assertion import Verifier
from mlflow_iap_callbacks.server.gate import Gate, visitor
from mlflow_iap_callbacks.server.public_keys import PublicKeys
from mlflow_iap_callbacks.server.routes import PERMISSIONS, ROUTES, route_of

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

ASSERTION = "X-Goog-IAP-JWT-Assertion"
ADA = "ada@example.com"

# The families of routes that are closed. Decide on each new one of an MLflow version before adding
# it here, or to the table in routes.py.
CLOSED = {
    "/gateway": "models of providers, called with the server's keys",
    "/jobs": "functions run in processes of the server",
    "/api/2.0mlflow/experiments/search-datasets": "a misspelled route",
    "assistant": "an agent with a shell on the server",
    "demo": "writes experiments",
    "gateway": "the server's keys for providers of models",
    "gateway-proxy": "calls a model",
    "genai": "judges that call models",
    "issues/invoke": "judges that call models",
    "issues/schedule": "judges that call models, in MLflow 3.18",
    "signup": "users with passwords, which are of no use here",
    "users/create-ui": "users with passwords, which are of no use here",
    "jobs": "functions run in processes of the server",
    "mcp-servers": "commands for clients to run",
    "prompt-optimization": "calls models",
    "runs/create-promptlab-run": "calls a model",
    "scorer": "judges that call models",
    "scorers/online-config": "judges that call models",
    "scorers/online-configs": "judges that call models",
    "skills": "commands for clients to run, in MLflow 3.18",
    "ui-telemetry": "sends data to MLflow",
}


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as running:
        yield running


@pytest.fixture
def app() -> Recorder:
    return Recorder()


def gate(cloud: LocalCloud, app: Any, **options: Any) -> Gate:
    audience = cloud.server_environment()["MLFLOW_IAP_AUDIENCE"]
    return Gate(app, Verifier(PublicKeys(cloud.assertion_keys_url), audience), **options)


def ask(app: Any, path: str, *args: Any, **options: Any) -> Answer:
    return asyncio.run(call(app, path, *args, **options))


def by_another_cloud(cloud: LocalCloud) -> dict[str, str]:
    with LocalCloud() as other:
        return {ASSERTION: other.assertion(ADA)}


FORGED: dict[str, Callable[[LocalCloud], Any]] = {
    "nothing": lambda cloud: {},
    "an unsigned e-mail": lambda cloud: {
        "X-Goog-Authenticated-User-Email": f"accounts.google.com:{ADA}"
    },
    "an expired assertion": lambda cloud: {ASSERTION: cloud.assertion(ADA, iat=1, exp=600)},
    "an assertion for another application": lambda cloud: {
        ASSERTION: cloud.assertion(ADA, aud="/projects/1/apps/other")
    },
    "an assertion signed with another key": by_another_cloud,
    "two assertions": lambda cloud: [
        (ASSERTION, cloud.assertion(ADA)),
        (ASSERTION, cloud.assertion(ADA)),
    ],
    "an assertion in another header": lambda cloud: {
        "Authorization": f"Bearer {cloud.assertion(ADA)}",
        "X_Goog_IAP_JWT_Assertion": cloud.assertion(ADA),
    },
}


@cache
def mlflow_routes() -> dict[str, set[str]]:
    """Return the routes of MLflow's app: a path that each matches, with its methods."""
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import app as fastapi_app

    found: dict[str, set[str]] = {}
    for route, context in routing._iter_routes_with_context(fastapi_app.routes):
        if isinstance(route, Mount):
            assert route.path == "", f"{route} is not the Flask app"
        else:
            assert isinstance(route, routing.APIRoute), f"{route} is a new kind of route"
            path = (context or route).path
            found.setdefault(re.sub(r"\{[^}]*\}", "x", path), set()).update(route.methods or ())
    for rule in flask_app.url_map.iter_rules():
        found.setdefault(re.sub("<[^>]*>", "x", rule.rule), set()).update(rule.methods or ())
    return found


def call_of(path: str) -> str:
    """Return the part of a path that names a call, without the prefixes of MLflow's APIs."""
    return re.sub(r"^/(ajax-)?api/\d\.\d(/mlflow/|(?=/))", "", path.replace("ajax-api", "api"))


def is_closed(path: str) -> bool:
    families = "|".join(map(re.escape, CLOSED))
    return re.fullmatch(f"/?({families})(/.*)?", call_of(path)) is not None


# Other tests reject each of these as well; on all routes, each takes half a second.
_SELDOM = ("an expired assertion", "an assertion for another application")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind in _SELDOM else kind for kind in FORGED],
)
def test_no_route_of_mlflow_is_reached_without_an_assertion(cloud: LocalCloud, kind: str) -> None:
    app = Recorder()
    guarded = gate(cloud, app)
    headers = FORGED[kind](cloud)

    async def try_all() -> list[tuple[str, str, int]]:
        return [
            (method, path, (await call(guarded, path, method, headers)).status)
            for path, methods in mlflow_routes().items()
            if path not in ("/health", "/version")
            for method in {"GET", "POST", *methods}
        ]

    # 503: Google's keys were fetched so recently that a new one may be missing.
    admitted = [tried for tried in asyncio.run(try_all()) if tried[2] not in (401, 503)]
    assert admitted == []
    assert app.calls == 0


def test_each_route_of_mlflow_is_in_the_table_or_known_to_be_closed() -> None:
    routes = [
        (method, path)
        for path, methods in mlflow_routes().items()
        for method in methods - {"OPTIONS"}  # only other origins need it, which IAP turns away
    ]
    wrong = [
        (method, path)
        for method, path in routes
        if (route_of(method, path) is None) != is_closed(path)
    ]
    assert len(routes) > 400
    assert wrong == []


def test_each_route_for_permissions_is_in_the_table_or_known_to_be_closed() -> None:
    """MLflow adds them to its app only with permissions on."""
    paths = [re.sub("<[^>]*>", "x", path) for path in permission_paths()]
    assert len(paths) > 50
    methods = ("GET", "POST", "PATCH", "DELETE")
    undecided = [
        path
        for path in paths
        if not is_closed(path) and not any(route_of(method, path) for method in methods)
    ]
    assert undecided == []


def permission_paths() -> list[str]:
    """Return the paths of the module that names them, without MLflow's module that needs them."""
    import mlflow.server

    file = Path(mlflow.server.__file__).parent / "auth" / "routes.py"
    return [value for name, value in runpy.run_path(str(file)).items() if name.isupper()]


def test_each_row_of_the_table_is_for_a_route_of_mlflow() -> None:
    found = [
        route_of(method, path) for path, methods in mlflow_routes().items() for method in methods
    ]
    users = [each for each in ROUTES if each.needs == PERMISSIONS]
    unused = [route.path.pattern for route in ROUTES if route not in [*found, *users]]
    assert unused == []


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "TRACE"])
@pytest.mark.parametrize(
    "path",
    [
        *("/api/3.0/mlflow/new-feature", "/api/2.0/mlflow/runs/new-call", "/new", "/api/4.0/x/y"),
        *("/api/2.0/mlflow/runs/createx", "/api/2.0/mlflow/traces/a/b/c", "/v1/metrics", "/docs"),
    ],
)
def test_a_route_that_nobody_has_decided_on_is_closed(
    cloud: LocalCloud, app: Recorder, path: str, method: str
) -> None:
    answer = ask(gate(cloud, app), path, method, {ASSERTION: cloud.assertion(ADA)})
    assert (answer.status, app.calls) == (404, 0)


@pytest.mark.parametrize(
    "path",
    [
        "/gateway/mlflow/v1/chat/completions",
        "//gateway/mlflow/v1/chat/completions",
        "/ajax-api/3.0/jobs/",
        "/ajax-api/3.0/mlflow/assistant/message",
        "/ajax-api/3.0//mlflow/assistant/message",
        "/api/3.0/mlflow/mcp-servers",
        "/api/2.0/mlflow/webhooks/x/test",
        "/ajax-api/3.0/mlflow/scorer/invoke",
        "/ajax-api/2.0/mlflow/gateway-proxy",
        "/ajax-api/3.0/mlflow/genai/evaluate/invoke",
        "/prefix/gateway/mlflow/v1/models",
        "/prefix/ajax-api/3.0/jobs/search",
        "/ajax-api/3.0/mlflow/issues/invoke",
    ],
)
def test_routes_that_run_code_or_call_other_services_are_closed(
    cloud: LocalCloud, app: Recorder, path: str
) -> None:
    guarded = gate(cloud, app, static_prefix="/prefix")
    answer = ask(guarded, path, "POST", {ASSERTION: cloud.assertion(ADA)})
    assert (answer.status, app.calls) == (404, 0)


@pytest.mark.parametrize(
    ("feature", "path"),
    [
        ("webhooks", "/api/2.0/mlflow/webhooks/w-1/test"),
        ("permissions", "/api/2.0/mlflow/users/list"),
        ("permissions", "/ajax-api/3.0/mlflow/roles/list"),
    ],
)
def test_the_routes_of_a_feature_are_closed_unless_it_is_on(
    cloud: LocalCloud, app: Recorder, feature: str, path: str
) -> None:
    method, headers = "POST" if feature == "webhooks" else "GET", {ASSERTION: cloud.assertion(ADA)}
    assert ask(gate(cloud, app), path, method, headers).status == 404
    assert ask(gate(cloud, app, features=["other"]), path, method, headers).status == 404
    assert app.calls == 0
    assert ask(gate(cloud, app, features=[feature]), path, method, headers).status == 200
    assert app.calls == 1


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\t", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize(
    "path",
    ["/api/3.0/mlflow/mcp-servers{}", "/api/3.0/mlflow/mcp{}-servers", "/{}gateway/x", "/x{}"],
)
def test_a_path_with_a_control_character_reaches_no_router(
    cloud: LocalCloud, app: Recorder, path: str, character: str
) -> None:
    headers = {ASSERTION: cloud.assertion(ADA)}
    answer = ask(gate(cloud, app), path.format(character), headers=headers)
    assert (answer.status, app.calls) == (400, 0)


def test_an_artifact_may_have_a_name_in_any_language(cloud: LocalCloud, app: Recorder) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts/1/x/artifacts/ü 模型\u00a0.txt"
    assert ask(gate(cloud, app), path, headers={ASSERTION: cloud.assertion(ADA)}).status == 200


def test_an_artifact_may_be_named_like_a_closed_route(cloud: LocalCloud, app: Recorder) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts/1/x/artifacts/ajax-api/3.0/jobs/gateway/x"
    assert ask(gate(cloud, app), path, headers={ASSERTION: cloud.assertion(ADA)}).status == 200


@pytest.mark.parametrize("path", ["/health", "/version"])
def test_health_and_version_are_open_and_do_not_reach_mlflow(
    cloud: LocalCloud, app: Recorder, path: str
) -> None:
    assert ask(gate(cloud, app), path).status == 200
    assert ask(gate(cloud, app), path, "HEAD").status == 200
    assert app.calls == 0


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("//health", {}),
        ("/health/", {}),
        ("/health//", {}),
        ("/Health", {}),
        ("/health/../api/2.0/mlflow/runs/search", {}),
        ("/health;x", {}),
        ("/static-files/../health", {}),
        ("/prefix/health", {}),
        ("/health", {"raw_path": b"/%68ealth"}),
        ("/health", {"method": "POST"}),
        ("/health", {"method": "OPTIONS"}),
        ("/root/health", {"root_path": "/root"}),
        ("/health", {"type": "websocket"}),
    ],
)
def test_a_path_that_resembles_an_open_one_is_not_open(
    cloud: LocalCloud, app: Recorder, path: str, scope: dict[str, Any]
) -> None:
    answer = ask(gate(cloud, app, static_prefix="/prefix"), path, **scope)
    assert answer.status in (401, 403)
    assert app.calls == 0


def test_a_websocket_needs_an_assertion_and_a_route_too(cloud: LocalCloud, app: Recorder) -> None:
    assert ask(gate(cloud, app), "/ws", type="websocket").status == 403
    headers = {ASSERTION: cloud.assertion(ADA)}
    assert ask(gate(cloud, app), "/ws", headers=headers, type="websocket").status == 403
    assert app.calls == 0


def test_an_error_is_json_on_paths_of_the_api_and_text_elsewhere(cloud: LocalCloud) -> None:
    page = ask(gate(cloud, Recorder()), "/")
    assert page.headers["content-type"].startswith("text/plain")
    assert b"no valid assertion of Identity-Aware Proxy" in page.body
    for path in ("/api/2.0/mlflow/runs/search", "/ajax-api/3.0/mlflow/traces/search"):
        api = ask(gate(cloud, Recorder()), path)
        assert api.headers["content-type"] == "application/json"
        assert b'"error_code": "UNAUTHENTICATED"' in api.body


def test_without_public_keys_the_response_is_a_503_that_says_why(app: Recorder) -> None:
    with LocalCloud() as cloud:
        cloud.fault("answer", path="/iap/verify", times=0, where="google")
        answer = ask(gate(cloud, app), "/", headers={ASSERTION: cloud.assertion(ADA)})
    assert (answer.status, app.calls) == (503, 0)
    assert b"public keys" in answer.body


def test_removes_headers_with_which_a_client_could_claim_an_identity(
    cloud: LocalCloud, app: Recorder
) -> None:
    headers = {
        ASSERTION: cloud.assertion(ADA),
        "X-Goog-Authenticated-User-Email": "accounts.google.com:eve@example.com",
        "X_Goog_Authenticated_User_Email": "accounts.google.com:eve@example.com",
        "X-Goog-Authenticated-User-Id": "accounts.google.com:2",
        "Authorization": "Basic ZXZlOnB3",
        "Remote-User": "eve",
        "Remote_User": "eve",
        "X-Forwarded-User": "eve",
        "X_Forwarded_Email": "eve@example.com",
        "X-Auth-Request-Email": "eve@example.com",
        "X-MLflow-Run-Id": "1",
        "Content-Type": "text/plain",
    }
    assert ask(gate(cloud, app), "/", headers=headers).body == b"in"
    assert app.headers == {"x-mlflow-run-id": "1", "content-type": "text/plain"}


def test_each_request_has_its_own_visitor(cloud: LocalCloud) -> None:
    async def tell(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        name = await asyncio.to_thread(visitor.get)
        await send({"type": "http.response.body", "body": name.encode()})

    guarded = gate(cloud, tell)
    emails = [f"user-{number}@example.com" for number in range(20)]

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(
            *(call(guarded, "/", headers={ASSERTION: cloud.assertion(email)}) for email in emails)
        )

    assert [answer.body.decode() for answer in asyncio.run(all_at_once())] == emails
    assert visitor.get("nobody") == "nobody"


def test_the_application_gets_the_servers_lifespan_events(cloud: LocalCloud, app: Recorder) -> None:
    ask(gate(cloud, app), "", type="lifespan")
    assert app.calls == 1
