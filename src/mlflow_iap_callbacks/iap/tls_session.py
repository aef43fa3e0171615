"""A session of ``requests`` that uses MLflow's variables for TLS, as MLflow's client does."""

from __future__ import annotations

import os
from typing import Any

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds

from ..errors import IAPConfigurationError


class TLSSession(requests.Session):
    """Session whose requests use MLFLOW_TRACKING_INSECURE_TLS and the variables for certificates.

    A request's arguments take precedence, then MLflow's variables, then those of ``requests``.
    """

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        try:
            settings = get_default_host_creds(url)
        except MlflowException as error:
            raise IAPConfigurationError(error.message) from None
        if verify is None:
            verify = settings.verify
            _check("MLFLOW_TRACKING_SERVER_CERT_PATH", settings.server_cert_path)
        if cert is None:
            cert = settings.client_cert_path
            _check("MLFLOW_TRACKING_CLIENT_CERT_PATH", cert)
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def _check(variable: str, path: str | None) -> None:
    if path and not os.path.exists(path):
        raise IAPConfigurationError(
            f"{variable} names {path!r}, which does not exist. Set it to the path of a PEM file, "
            "or unset it."
        )
