"""MLflow's permissions per experiment and registered model, for visitors whom the gate admits.

A visitor's first request creates an MLflow user with the visitor's e-mail and a random password.
The password is never used, because only the gate authenticates. Each request of a user in
MLFLOW_IAP_ADMINS makes sure that the user is an admin. All others start with the default
permission.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow import environment_variables as mlflow_variables
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED
from sqlalchemy import make_url
from starlette.types import ASGIApp
from werkzeug.datastructures import Authorization

from .gate import visitor
from .gate_settings import GateSettings

AUTHORIZATION_FUNCTION = f"{__name__}:user_of_request"


def user_of_request() -> Authorization:
    """Return the visitor as MLflow's user. This is MLflow's `authorization_function`.

    Raises:
        MlflowException: if the request bypassed the gate.
    """
    from mlflow.server.auth import store

    email = visitor.get("")
    if not email:
        raise MlflowException("The user of this request is unknown.", UNAUTHENTICATED)
    is_admin = email in GateSettings.from_environment().admins
    if not store.has_user(email):
        with suppress(MlflowException):  # another request of this visitor created it first
            store.create_user(email, secrets.token_urlsafe(), is_admin=is_admin)
    if is_admin and not store.get_user(email).is_admin:
        store.update_user(email, is_admin=True)
    return Authorization("basic", {"username": email})


def app_with_permissions(settings: GateSettings) -> ASGIApp:
    """Return MLflow's app with its own permissions, for the users of `user_of_request`.

    The users are stored in the same database as the runs.
    """
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR

    # This key is needed only by a page that is not served, so it may differ between processes.
    os.environ.setdefault(mlflow_variables.MLFLOW_FLASK_SERVER_SECRET_KEY.name, secrets.token_hex())
    # MLflow requires an initial admin.
    os.environ[mlflow_variables.MLFLOW_AUTH_ADMIN_USERNAME.name] = settings.admins[0]
    os.environ[mlflow_variables.MLFLOW_AUTH_ADMIN_PASSWORD.name] = secrets.token_urlsafe()
    mlflow_variables.MLFLOW_BASIC_AUTH_FAIL_CLOSED.set(True)
    mlflow_variables._MLFLOW_SGI_NAME.set("uvicorn")  # otherwise MLflow returns only the Flask app
    with _config_file(settings.default_permission):
        from mlflow.server import auth
    with _one_process_at_a_time(os.environ[BACKEND_STORE_URI_ENV_VAR]):
        app: ASGIApp = auth.create_app()
    return app


def may_use(email: str, location: str, path: str) -> bool:
    """Return whether a user may name a location of artifacts in a request.

    Args:
        email: the user's e-mail.
        location: a URI that `locations.require_allowed` accepts.
        path: the path of the request. A model version's source must be readable by the user. Any
            other location must be writable, because MLflow later writes to it.
    """
    from mlflow.server import auth

    scheme, _, place = location.partition(":/")
    action = "read" if path.rstrip("/").endswith("model-versions/create") else "update"
    if auth.store.has_user(email) and auth.store.get_user(email).is_admin:
        return True
    try:
        if scheme == "runs":
            needed = auth._run_requirement(place.partition("/")[0], action)
            return needed is not None and auth.authorize(email, *needed)
        if scheme == "models":
            return action == "read"  # MLflow checks the model
        return scheme != "mlflow-artifacts" or _may_use_artifacts(email, place, action)
    except MlflowException:  # there is no such run or experiment
        return False


def _may_use_artifacts(email: str, place: str, action: str) -> bool:
    from mlflow.server import auth, handlers

    canonical = auth._canonical_artifact_proxy_path(place)
    experiment_id = canonical and auth._experiment_id_from_canonical_proxy_path(canonical)
    if not experiment_id:
        return False
    handlers._get_tracking_store().get_experiment(experiment_id)
    return auth._authorize_artifact_proxy_resolved(
        auth._artifact_proxy_child(place, action),
        *(email, action, lambda: auth._get_experiment_permission(experiment_id, email)),
    )


@contextmanager
def _one_process_at_a_time(database_uri: str) -> Iterator[None]:
    """Let a server's processes, which start together, create the tables one after another.

    Servers with other databases do not wait if this database does not respond.
    """
    import fcntl  # does not exist on Windows, where the other modules can be imported

    url = make_url(database_uri).set(password=None)
    if url.get_backend_name() == "sqlite":
        url = url.set(database=str(Path(url.database or "").absolute()))
    name = hashlib.sha256(str(url).encode()).hexdigest()
    path = Path(tempfile.gettempdir(), f"mlflow-iap-{os.getuid()}-{name}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextmanager
def _config_file(default_permission: str) -> Iterator[None]:
    """Write the file that MLflow reads once; then delete it, as it has the database's password."""
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR

    config = configparser.ConfigParser(interpolation=None)
    config.read(Path(mlflow.__file__).parent / "server" / "auth" / "basic_auth.ini")
    config["mlflow"]["database_uri"] = os.environ[BACKEND_STORE_URI_ENV_VAR].replace("%", "%%")
    config["mlflow"]["default_permission"] = default_permission
    config["mlflow"]["authorization_function"] = AUTHORIZATION_FUNCTION
    name = mlflow_variables.MLFLOW_AUTH_CONFIG_PATH.name
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
        config.write(file)
        file.flush()
        os.environ[name] = file.name
        try:
            yield
        finally:
            del os.environ[name]
