"""What ``mlflow-iap doctor`` says about requests that fail before or behind IAP."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

import requests
from mlflow.exceptions import MlflowException, RestException
from urllib3.exceptions import NameResolutionError, ProxyError, TimeoutError

from ..errors import IAPError
from ..iap.connection_errors import chain_of, is_certificate_invalid
from ..iap.passwords import without_passwords

_LONGEST = 300  # characters, of a server's own text


def explain(error: Exception, uri: str) -> str:
    """Return what went wrong with a request to a server, and what to do."""
    if isinstance(error, IAPError):
        return error.message
    for each in chain_of(error):
        if isinstance(each, IAPError):
            return each.message
        if isinstance(each, requests.HTTPError) and each.response is not None:
            return _of_status(each.response, uri)
    if isinstance(error, RestException):
        return _of_mlflow(error)
    return _of_connection(error, uri)


def _of_status(response: requests.Response, uri: str) -> str:
    status = response.status_code
    if status == 404:
        return (
            f"{uri} is not an MLflow server: it answered 404 to {urlsplit(response.url).path}. "
            "Check the path of the URL."
        )
    if status == 401:
        return _REJECTED
    if status == 403:
        return f"{uri} denies access (403). Ask its administrators for permission."
    if status >= 500:
        return (
            f"{uri} answered {status} ({response.reason}). MLflow is not running, or has an "
            "error. Check its log: `gcloud app logs read`"
        )
    return f"{uri} answered {status} ({response.reason}). Check that the URL is MLflow's."


_REJECTED = (
    "MLflow's own authentication, behind IAP, rejects this user. Set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD."
)


def _of_mlflow(error: RestException) -> str:
    text = without_passwords(" ".join(str(error).split()))[:_LONGEST]
    if error.error_code == "UNAUTHENTICATED":
        return _REJECTED
    return f"MLflow answered with an error: {text}. See MLflow's log for details."


def _of_connection(error: Exception, uri: str) -> str:
    host = urlsplit(uri).hostname or uri
    place = without_passwords(urlsplit(uri).netloc).rpartition("@")[2] or uri
    causes = [*chain_of(error)]

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in causes)

    if is_any(ProxyError, requests.exceptions.ProxyError):
        return (
            f"The proxy in HTTPS_PROXY or HTTP_PROXY cannot be used to reach {place}. Correct the "
            f"variable, or add {host} to NO_PROXY."
        )
    if is_certificate_invalid(error):
        why = next(each for each in causes if isinstance(each, ssl.SSLCertVerificationError))
        return (
            f"The certificate of {place} is not trusted ({why.verify_message}). Set "
            "MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE to the file with the "
            "certificate of the authority that issued it."
        )
    if is_any(NameResolutionError, socket.gaierror):
        return f"The host {host} cannot be found. Check the URL, and this machine's network or VPN."
    if is_any(ConnectionRefusedError):
        return f"Nothing listens at {place}. Check the URL's port, and that the server is running."
    if is_any(TimeoutError, requests.Timeout):
        return f"{place} does not respond. Check this machine's network, firewall or VPN."
    if is_any(ssl.SSLError):
        return f"{place} does not speak TLS. Check the URL's scheme and port."
    if isinstance(error, MlflowException) and not is_any(OSError):
        return f"The answer from {place} did not come from MLflow. Check the URL."
    return f"The connection to {place} was interrupted. Check this machine's network or VPN."
