"""MLflow's app behind the gate: `mlflow server --app-name iap`."""

from __future__ import annotations

import os
import sys

from starlette.types import ASGIApp

from .gate_settings import GateSettings
from .start_error import StartError

# With this status uvicorn stops all of the server; after others it starts the process again.
_STARTUP_FAILURE = 3


def create_app() -> ASGIApp:
    """Return MLflow's whole app behind the gate, as the environment says.

    A setting that cannot work ends the process, with one sentence.
    """
    # MLflow imports this module in the parent process, which needs nothing of the rest.
    from .assertion import Verifier
    from .gate import Gate
    from .ownership_middleware import Identity
    from .public_keys import PublicKeys

    try:
        settings = GateSettings.from_environment()
        app = _mlflow_app(settings)
    except StartError as error:
        print(error, file=sys.stderr)  # noqa: T201 - before any log is set up
        raise SystemExit(_STARTUP_FAILURE) from None
    static_prefix = os.environ.get("_MLFLOW_STATIC_PREFIX", "")
    verifier = Verifier(PublicKeys(settings.keys_url), settings.audience)
    return Gate(Identity(app, static_prefix=static_prefix), verifier, static_prefix=static_prefix)


def _mlflow_app(settings: GateSettings) -> ASGIApp:
    from mlflow.environment_variables import _MLFLOW_SGI_NAME

    if _MLFLOW_SGI_NAME.get() in ("gunicorn", "waitress"):
        raise StartError(
            f"{_MLFLOW_SGI_NAME.get()} serves a part of MLflow only, and not this app: start it "
            "without --gunicorn-opts and --waitress-opts."
        )
    if settings.has_permissions:
        from .permissions import app_with_permissions

        return app_with_permissions(settings)
    from mlflow.server import fastapi_app

    app: ASGIApp = fastapi_app.app
    return app
