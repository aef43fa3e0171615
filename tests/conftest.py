"""A real MLflow server behind a local IAP, and an application that shows what it received."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import count, cycle
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, settings

import python_process
from forked_test import in_forked_child
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer, certificates, keys
from mlflow_iap_callbacks.local import cloud as cloud_servers
from mlflow_iap_callbacks.local.private_files import write_private
from tracking_server import TrackingServer
from variables import set_all

if TYPE_CHECKING:
    from deployment import Deployment
    from mlflow_iap_callbacks.iap.auth import IAPAuth

_OURS = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_AUTH", "MLFLOW_RUN_ID"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID", "MLFLOW_IAP_IMPERSONATE"),
    *("MLFLOW_IAP_BACKGROUND", "MLFLOW_ENABLE_ASYNC_LOGGING"),
    *("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"),
    *("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "NETRC"),
)


_KEYS = 24  # more than any test needs
_numbers = count()

# No test fails because the machine is slow.
_untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("everyday", _untimed, max_examples=20)
settings.register_profile("thorough", _untimed, max_examples=250)
settings.load_profile("everyday")  # unless --hypothesis-profile is given


def _new_short_key() -> rsa.RSAPrivateKey:
    # google-auth checks a key whenever it reads it, which takes 50 ms for the usual 2048 bits.
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fresh-interpreters",
        action="store_true",
        help="each program of a test imports MLflow itself, instead of being forked",
    )
    parser.addoption(
        "--deployed",
        metavar="PYTHON",
        help="the tests of an MLflow server run on a whole deployment, served by this Python",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fresh-interpreters"):
        python_process.use_fresh_interpreters()


def pytest_collection() -> None:
    gc.disable()  # it would look again and again at a million objects of imported modules


def pytest_collection_finish() -> None:
    gc.freeze()  # nor does it look at them later
    gc.set_threshold(10_000, 20, 1000)  # seldom: 8% of the time went to it, and tests leave little
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    if pyfuncitem.get_closest_marker("forked") is None:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    in_forked_child(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in names})
    return True


@pytest.fixture(scope="session", autouse=True)
def _few_rsa_keys() -> Iterator[None]:
    """Let a test's clouds use keys of earlier tests: a new one takes 70 ms of CPU."""
    made = cycle([cache(_new_short_key) for _ in range(_KEYS)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keys, "_new_rsa_key", lambda: next(made)())
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let all clouds use one certificate: a new one takes 5 ms of CPU."""
    made = cache(partial(certificates.tls_context, tmp_path_factory.mktemp("certificate")))

    def copied(folder: Path, host_names: tuple[str, ...]) -> tuple[SSLContext, Path]:
        context, trusted = made(host_names)
        return context, write_private(folder / trusted.name, trusted.read_bytes())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cloud_servers, "tls_context", copied)
        yield


@pytest.fixture(autouse=True)
def _no_sender_and_no_token_outlives_its_test(_clean_environment: None) -> Iterator[None]:
    yield
    # MLflow takes seconds to import, and pytest's own process runs no test.
    from mlflow.tracking._tracking_service import utils
    from mlflow.utils import request_utils

    from mlflow_iap_callbacks.background import plugin
    from mlflow_iap_callbacks.delivery import lifecycle
    from mlflow_iap_callbacks.iap import mlflow_plugin
    from mlflow_iap_callbacks.iap.credentials import IAPCredentials
    from mlflow_iap_callbacks.optuna.comparison import comparer
    from mlflow_iap_callbacks.optuna.reporter import reporter

    threads = [(each._thread, each._wake) for each in (comparer, reporter)]
    lifecycle.exit_process(0.0)
    comparer._reset()
    reporter._reset()
    for thread, wake in threads:
        if thread is not None:
            wake.set()
            thread.join(5.0)  # or it could report this test's study to the next test's server
    for auth in mlflow_plugin._auths.values():
        # A request that is still retried would fetch a token from the next test's Google.
        auth.configure(IAPCredentials(key_file="no-key.json"), None)
    # A later cloud may be on a port that is free again, with other accounts.
    mlflow_plugin._auths.clear()
    mlflow_plugin._prefixes.clear()
    request_utils._cached_get_request_session.cache_clear()
    if plugin._writes.cache_info().currsize:
        plugin._writes.cache_clear()
        utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder. pytest's own fixture looks through the folders of all tests each time."""
    folder = tmp_path_factory.getbasetemp() / f"test-{next(_numbers)}"
    folder.mkdir(0o700)
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Isolate each test from the developer's own settings and from those of other tests."""
    for name in _OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # MLflow leaves folders in its working directory
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(tmp_path / "outbox"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # if that cannot be used
    yield
    for name in _OURS:
        os.environ.pop(name, None)  # what the code under test has set


@pytest.fixture(scope="session")
def mlflow_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer | Deployment]:
    """A real server, shared by all tests of a worker, each of which uses its own experiment."""
    folder = tmp_path_factory.mktemp("mlflow")
    python = request.config.getoption("--deployed")
    if python is None:
        with TrackingServer(folder) as server:
            yield server
    else:
        from deployment import Deployment

        with Deployment(folder, Path(python)) as deployment:
            yield deployment


@pytest.fixture
def bare_server(mlflow_server: MlflowServer | Deployment) -> MlflowServer:
    """The real server, for tests that reach it without IAP."""
    if not isinstance(mlflow_server, MlflowServer):
        pytest.skip("A deployed server lets nobody in without IAP.")
    return mlflow_server


@pytest.fixture(scope="session")
def new_cloud(mlflow_server: MlflowServer | Deployment) -> Callable[..., LocalCloud]:
    """Creates IAPs in front of the real server, which are not started yet."""
    if isinstance(mlflow_server, MlflowServer):
        return partial(LocalCloud, mlflow_server.url)
    return mlflow_server.new_cloud


@pytest.fixture
def cloud(
    new_cloud: Callable[..., LocalCloud], monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalCloud]:
    """IAP in front of the real server, with the variables of its user set."""
    with new_cloud() as cloud:
        set_all(monkeypatch, cloud.environment())
        yield cloud


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    """IAP in front of an application that responds with what it received."""
    with LocalCloud() as cloud:
        set_all(monkeypatch, cloud.environment())
        yield cloud


@pytest.fixture
def google_cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    """Like ``echo``, but Google's host names lead to this machine and no variable is set."""
    with LocalCloud() as cloud:
        set_all(monkeypatch, cloud.google_environment())
        yield cloud


@pytest.fixture
def session() -> Iterator[Callable[[IAPAuth], requests.Session]]:
    """Creates sessions that send requests like MLflow's: with this package's transport."""
    with ExitStack() as opened:
        yield lambda auth: opened.enter_context(auth.session())
