"""``IAPMlflowClient``: MLflow's client, through IAP."""

from __future__ import annotations

import inspect
import os
import re
import time
import uuid
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.request_auth.registry import fetch_auth

from ..errors import IAPConfigurationError, IAPUnknownOutcomeError
from ..tags import ASKED_TWICE_TAG, RUN_KEY_TAG
from .auth import IAPAuth
from .credentials import IAPCredentials
from .mlflow_plugin import NAME, auth_for, choose
from .retry import RetryPolicy, TryAgain
from .run_lookup import find_run
from .unwrapping import unwrapped_errors

# Seconds in which a server may yet make a run though the connection to it broke.
_PATIENCE = 10.0

_C = TypeVar("_C", bound=type)


def _unwrapping(cls: _C) -> _C:
    def telling(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with unwrapped_errors():
                return method(*args, **kwargs)

        return call

    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_"):
            setattr(cls, name, telling(method))
    return cls


@_unwrapping
class IAPMlflowClient(MlflowClient):
    """An ``mlflow.MlflowClient`` whose every method works through Google's Identity-Aware Proxy.

    Tokens are fetched when IAP asks for one, kept until shortly before their end and fetched again
    when IAP rejects them. Against a server without IAP, or a database or file URI, it is its
    parent.

    One effect reaches beyond the object: MLflow picks its authentication by the environment
    variable MLFLOW_TRACKING_AUTH, which is set to ``iap`` where it is unset. From then on the
    fluent API, autolog, artifacts and the model registry of this process pass through IAP too. A
    process has one identity and one retry policy per server: the last ones given, by whichever
    client.

    Args:
        tracking_uri: ``https://HOST`` of the tracking server. Default: MLflow's own
            (``mlflow.set_tracking_uri``, MLFLOW_TRACKING_URI).
        registry_uri: of the model registry. Default: the tracking server.
        credentials: who to be. Default: Application Default Credentials.
        audience: the OAuth client id that IAP accepts; short for
            ``credentials=IAPCredentials(audience)``.
        max_attempts: of one request, at least 1. Default: 12, which outlasts the deadline.
        deadline: seconds after which a request is not sent again; the first time it has all of
            MLFLOW_HTTP_REQUEST_TIMEOUT. Default: 120, longer than an App Engine instance needs to
            restart.

    Raises:
        IAPConfigurationError: no URI is set, it is no URL, it is plain http to another machine,
            the audience is empty, or MLFLOW_TRACKING_AUTH names another authentication.

    All methods raise ``IAPError`` and its subclasses where IAP or Google is the matter.
    """

    def __init__(
        self,
        tracking_uri: str | os.PathLike[str] | None = None,
        registry_uri: str | None = None,
        *,
        credentials: IAPCredentials | None = None,
        audience: str | None = None,
        max_attempts: int | None = None,
        deadline: float | None = None,
    ) -> None:
        if audience is not None:
            if credentials is not None:
                raise IAPConfigurationError(
                    "Both credentials and audience were given. Give the audience to the "
                    "credentials: IAPCredentials(audience)."
                )
            credentials = IAPCredentials(audience)
        retry = None
        if max_attempts is not None or deadline is not None:
            retry = RetryPolicy(
                RetryPolicy.max_attempts if max_attempts is None else max_attempts,
                RetryPolicy.deadline if deadline is None else deadline,
            )
        tracking_uri = _checked_uri(tracking_uri)
        self._auth: IAPAuth | None = None
        for uri in filter(None, (registry_uri, tracking_uri)):
            is_remote = uri.startswith(("http://", "https://"))
            self._auth = auth_for(uri, credentials, retry) if is_remote else None
            if is_remote:
                _choose_iap()
        self._rebuild = partial(
            type(self),
            tracking_uri,
            registry_uri,
            credentials=credentials,
            max_attempts=max_attempts,
            deadline=deadline,
        )
        super().__init__(tracking_uri, registry_uri)

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        """As the parent's, and one run whatever answer is lost: the run carries a key of ours as
        tag ``mlflow_iap.run_key`` (given in ``tags`` or made here), by which it is looked up
        before it is created again."""
        if self._auth is None:
            return super().create_run(experiment_id, start_time, tags, run_name)
        retry = self._auth.retry
        tags = {RUN_KEY_TAG: uuid.uuid4().hex, **(tags or {})}
        lost: IAPUnknownOutcomeError | None = None
        # A server that is slow to answer may make the run yet.
        patience = 0.0

        def attempt() -> Run:
            nonlocal lost, patience
            if lost is not None:
                try:
                    run = find_run(self, experiment_id, tags[RUN_KEY_TAG])
                except MlflowException:
                    raise TryAgain(lost) from None
                if run is not None:
                    return run
                if time.monotonic() < patience:
                    raise TryAgain(lost, is_free=True)
                tags[ASKED_TWICE_TAG] = "true"
            try:
                with unwrapped_errors():
                    run = super(IAPMlflowClient, self).create_run(
                        experiment_id, start_time, tags, run_name
                    )
            except IAPUnknownOutcomeError as error:
                longest = retry.deadline / 2
                seconds = longest if error.is_under_way else min(_PATIENCE, longest)
                patience = time.monotonic() + seconds
                lost = error
                raise TryAgain(error, error.retry_after) from None
            return run

        return retry(attempt)

    def __reduce__(self) -> tuple[Callable[[], IAPMlflowClient], tuple[()]]:
        return self._rebuild, ()


def _checked_uri(given: str | os.PathLike[str] | None) -> str:
    if given is None:
        if not mlflow.is_tracking_uri_set():
            raise IAPConfigurationError(
                "No tracking URI is set. Set MLFLOW_TRACKING_URI to https://HOST, or give it as "
                "the first argument."
            )
        return str(mlflow.get_tracking_uri())
    uri = os.fspath(given)
    is_bare_host = re.fullmatch(r"(localhost|[\w-]+(\.[\w-]+)+)(:\d+)?(/.*)?", uri)
    if not uri.strip() or (is_bare_host and not os.path.exists(uri)):
        raise IAPConfigurationError(
            f"{uri!r} is no URL of a server. Give it with its scheme, as https://HOST."
        )
    return uri


def _choose_iap() -> None:
    other = choose()
    if other is not None:
        raise IAPConfigurationError(
            f"MLFLOW_TRACKING_AUTH is {other!r}, so MLflow would authenticate in another way. "
            f"Unset it, or set it to {NAME!r}."
        )
    if fetch_auth(NAME) is None:
        raise IAPConfigurationError(
            "MLflow does not know the authentication 'iap', so this package is importable and not "
            "installed. Install it: `pip install mlflow-iap-callbacks`."
        )
