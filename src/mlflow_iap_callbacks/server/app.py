"""The app that `mlflow server --app-name iap` serves: MLflow's app behind the gate."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from .gate_settings import GateSettings
from .start_error import StartError

if TYPE_CHECKING:
    from .body_middleware import MayUse

# uvicorn stops the whole server on this status; on any other it restarts the process.
_STARTUP_FAILURE = 3


def create_app() -> ASGIApp:
    """Return MLflow's app behind the gate, configured by environment variables.

    A setting that cannot work ends the process with one line on stderr.
    """
    # MLflow also imports this module in the parent process, which does not need the rest.
    from .assertion import Verifier
    from .body_middleware import BodyMiddleware
    from .changed_password import follow_changes
    from .gate import Gate
    from .public_keys import PublicKeys
    from .routes import PERMISSIONS, WEBHOOKS

    try:
        settings = GateSettings.from_environment()
        follow_changes(os.environ)
        app = _mlflow_app(settings)
    except StartError as error:
        print(error, file=sys.stderr)  # noqa: T201 - no log is set up yet
        raise SystemExit(_STARTUP_FAILURE) from None
    static_prefix = os.environ.get("_MLFLOW_STATIC_PREFIX", "")
    verifier = Verifier(PublicKeys(settings.keys_url), settings.audience)
    app = BodyMiddleware(
        app,
        locations=settings.locations,
        may_use=_may_use(settings),
        webhook_hosts=settings.webhook_hosts,
        static_prefix=static_prefix,
    )
    features = [PERMISSIONS] * settings.has_permissions + [WEBHOOKS] * bool(settings.webhook_hosts)
    return Gate(app, verifier, static_prefix=static_prefix, features=features)


def _mlflow_app(settings: GateSettings) -> ASGIApp:
    from mlflow.environment_variables import _MLFLOW_SGI_NAME

    if _MLFLOW_SGI_NAME.get() in ("gunicorn", "waitress"):
        raise StartError(
            f"{_MLFLOW_SGI_NAME.get()} cannot serve this app. Start the "
            "server without --gunicorn-opts and --waitress-opts."
        )
    from .partial_requests import refuse_partial_requests
    from .trace_store import use_owned_traces

    use_owned_traces()
    refuse_partial_requests()
    if settings.has_permissions:
        from .permissions import app_with_permissions

        return app_with_permissions(settings)
    from mlflow.server import fastapi_app

    app: ASGIApp = fastapi_app.app
    return app


def _may_use(settings: GateSettings) -> MayUse | None:
    if not settings.has_permissions:
        return None
    from .permissions import may_use

    return may_use
