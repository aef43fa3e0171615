"""All threads share one token, which is replaced in time, even with forks and wrong clocks."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.auth import jwt

from credentials_helpers import KINDS, get
from mlflow_iap_callbacks.errors import IAPCredentialsError
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
from mlflow_iap_callbacks.iap.google_tokens import Kind
from mlflow_iap_callbacks.local import LocalCloud
from waiting import wait_until

CLIENT = "123456789012-mlflow.apps.googleusercontent.com"
THREADS = 32


@pytest.fixture
def cloud(google_cloud: LocalCloud) -> LocalCloud:
    return google_cloud


def together(call: Callable[[], str]) -> list[str]:
    """Return what `call` returns to each of many threads that call it at the same time."""
    barrier = threading.Barrier(THREADS)

    def one(_: int) -> str:
        barrier.wait(timeout=20)
        return call()

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, range(THREADS), timeout=60))


def made(cloud: LocalCloud, kind: Kind, by: str) -> int:
    """Number of tokens of a kind that were issued to an account."""
    return len([token for token in cloud.tokens if (token.kind, token.account) == (kind, by)])


# --- one lock, one refresh -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["id_token", "access_token"])
def test_many_threads_that_need_a_first_token_get_the_same_one(
    cloud: LocalCloud, kind: Kind
) -> None:
    credentials = IAPCredentials(CLIENT, kind=kind, key_file=cloud.key_file())
    tokens = together(credentials.token)
    assert len(set(tokens)) == 1
    assert len(cloud.tokens) == 1


@pytest.mark.parametrize(
    ("kind", "is_young"),
    [
        ("signed_jwt", False),
        ("id_token", True),
        *(
            pytest.param(*form, marks=pytest.mark.slow)
            for form in itertools.product(KINDS, [True, False])
            if form not in {("signed_jwt", False), ("id_token", True)}
        ),
    ],
)
def test_many_threads_with_a_rejected_token_get_the_same_new_one(
    cloud: LocalCloud, kind: Kind, is_young: bool
) -> None:
    credentials = IAPCredentials(CLIENT, kind=kind, key_file=cloud.impersonated_file()).for_origin(
        cloud.url
    )
    if is_young:
        first_of_a_second()
    rejected = credentials.token()
    if not is_young:
        # JWTs that are signed within the same second are identical; in the next second they differ.
        first_of_a_second()
    began = int(time.time())
    tokens = together(lambda: credentials.token(rejected=rejected))
    more = made(cloud, kind, by=cloud.trainer) - 1
    if is_young:
        assert 1 <= more <= 1 + int(time.time()) - began
    else:
        assert more == len(set(tokens)) == 1
        assert tokens[0] != rejected


def first_of_a_second() -> None:
    begins = math.floor(time.time()) + 1
    wait_until(lambda: time.time() >= begins, "the next second", seconds=5)


def test_a_late_thread_with_an_old_token_gets_the_current_one(cloud: LocalCloud) -> None:
    credentials = IAPCredentials(CLIENT, kind="access_token", key_file=cloud.key_file())
    old = credentials.token()
    new = credentials.token(rejected=old)
    assert new != old
    assert credentials.token(rejected=old) == new
    assert credentials.token(rejected="another's") == new
    assert len(cloud.tokens) == 2


def test_a_failed_refresh_leaves_nothing_locked_and_the_next_call_retries(
    cloud: LocalCloud,
) -> None:
    credentials = IAPCredentials(CLIENT, key_file=cloud.impersonated_file())
    cloud.deny(cloud.user, on=cloud.trainer)
    with pytest.raises(IAPCredentialsError):
        credentials.token()
    cloud.grant(cloud.user, to=cloud.trainer)
    assert together(credentials.token)
    assert made(cloud, "id_token", by=cloud.trainer) == 1


# --- in time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["access_token", pytest.param("id_token", marks=pytest.mark.slow)])
def test_a_token_is_replaced_before_it_expires_and_not_more_often_than_needed(
    cloud: LocalCloud, kind: Kind
) -> None:
    cloud.token_lifetime = 1.5
    credentials = IAPCredentials(CLIENT, kind=kind, key_file=cloud.key_file())
    began = time.time()
    seen: dict[str, float] = {}

    def is_replaced_twice() -> bool:
        asked = time.time()
        token = credentials.token()
        # For an access token, it is not known how long Google took to respond.
        latest = time.time() + cloud.token_lifetime
        seen.setdefault(token, latest if kind == "access_token" else ends_of(token))
        assert asked < seen[token], "a token was given out after its end"
        return len(seen) == 3

    wait_until(is_replaced_twice, "the third token", seconds=20)
    shortest = 0.9  # a response has `expires_in` in whole seconds
    assert len(cloud.tokens) <= (time.time() - began) / shortest + 1


def ends_of(token: str) -> float:
    return float(jwt.decode(token, verify=False)["exp"])


@pytest.mark.parametrize("offset", [-9000.0, 9000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_has_its_full_lifetime_even_if_this_machines_clock_is_wrong(
    cloud: LocalCloud, kind: Kind, offset: float
) -> None:
    credentials = IAPCredentials(CLIENT, kind=kind, key_file=cloud.impersonated_file())
    cloud.clock_offset = offset
    bound = credentials.for_origin(cloud.url)
    lifetime = bound.describe()["lifetime"]
    assert 3590 <= float(lifetime.split()[0]) <= 3601
    given_out = len(cloud.tokens)
    assert bound.token() == bound.token()
    assert len(cloud.tokens) == given_out


# --- an identity that changes ----------------------------------------------------------------


def test_a_new_sign_in_is_used_by_the_same_process(
    cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adc = tmp_path / "adc.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(adc))
    adc.write_text(cloud.impersonated_file().read_text())
    credentials = IAPCredentials(CLIENT)
    rejected = credentials.token()
    cloud.revoke_refresh_tokens()
    with pytest.raises(IAPCredentialsError, match="revoked"):
        credentials.token(rejected=rejected)
    adc.write_text(cloud.impersonated_file().read_text())
    assert credentials.token(rejected=rejected)


def test_a_sign_in_by_gcloud_is_found_after_there_was_none(
    cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "not-yet.json"))
    credentials = IAPCredentials(CLIENT)
    with pytest.raises(IAPCredentialsError, match="cannot be read"):
        credentials.token()
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    cloud.impersonated_file().rename(tmp_path / "application_default_credentials.json")
    assert credentials.token()


@pytest.mark.parametrize("kind", ["id_token", "signed_jwt"])
def test_a_key_replaced_in_its_file_is_used_from_the_next_request_on(
    cloud: LocalCloud, tmp_path: Path, kind: Kind
) -> None:
    file = tmp_path / "key.json"
    file.write_text(cloud.key_file().read_text())
    credentials = IAPCredentials(CLIENT, kind=kind, key_file=file).for_origin(cloud.url)
    assert credentials.describe()["account"] == cloud.trainer
    given_out = len(cloud.tokens)
    file.write_text(file.read_text() + "\n")
    assert credentials.token() == credentials.token()
    assert len(cloud.tokens) - given_out == (1 if kind == "id_token" else 0)


@pytest.mark.parametrize("written", ["", '{"type": "service_acc'])
def test_a_file_that_is_being_written_does_not_end_the_use_of_the_old_key(
    cloud: LocalCloud, tmp_path: Path, written: str
) -> None:
    file = tmp_path / "key.json"
    file.write_text(cloud.key_file().read_text())
    credentials = IAPCredentials(CLIENT, key_file=file)
    token = credentials.token()
    complete = file.read_text()
    file.write_text(written)
    assert credentials.token() == token
    assert len(cloud.tokens) == 1
    file.unlink()
    assert credentials.token() == token
    file.write_text(complete)
    assert credentials.token()
    assert len(cloud.tokens) == 2


@pytest.mark.parametrize("how", ["key_file", "GOOGLE_APPLICATION_CREDENTIALS"])
def test_a_relative_path_stays_valid_if_the_program_changes_its_folder(
    cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "relative.json").write_text(cloud.key_file().read_text())
    monkeypatch.chdir(tmp_path)
    if how == "key_file":
        credentials = IAPCredentials(CLIENT, key_file="relative.json")
    else:
        monkeypatch.setenv(how, "relative.json")
        credentials = IAPCredentials(CLIENT)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert credentials.token()
    assert pickle.loads(pickle.dumps(credentials)).token()


# --- pickles and processes -------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    file: str
    kind: Kind


CASES = [Case("key_file", "signed_jwt"), Case("impersonated_file", "id_token")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_unpickled_credentials_work_and_the_pickle_contains_no_token_or_key(
    cloud: LocalCloud, case: Case
) -> None:
    file = getattr(cloud, case.file)()
    credentials = IAPCredentials(CLIENT, kind=case.kind, key_file=file).for_origin(cloud.url)
    token = credentials.token()
    pickled = pickle.dumps(credentials)

    assert token.encode() not in pickled
    info = json.loads(file.read_text())
    for secret in ("private_key", "private_key_id", "client_secret", "refresh_token"):
        for holder in (info, info.get("source_credentials", {})):
            assert holder.get(secret, "not there").encode() not in pickled

    get(cloud.url, pickle.loads(pickled)).raise_for_status()
    assert cloud.requests[-1].token_kind == case.kind


def token_in_a_new_process(credentials: IAPCredentials) -> str:
    return credentials.describe()["account"]


@pytest.mark.slow
def test_a_spawned_process_gets_its_own_token(cloud: LocalCloud) -> None:
    credentials = IAPCredentials(CLIENT, key_file=cloud.key_file())
    credentials.token()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        account = processes.submit(token_in_a_new_process, credentials).result(timeout=60)
    assert account == cloud.trainer
    assert len(cloud.tokens) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_during_a_fetch_gets_its_own_token(cloud: LocalCloud) -> None:
    credentials = IAPCredentials(CLIENT, key_file=cloud.key_file())
    # google-auth waits about a second before it retries. The credentials' lock is held meanwhile.
    cloud.fault("answer", path="/token", where="google", status=503, times=1)
    with ThreadPoolExecutor(1) as threads:
        fetch = threads.submit(credentials.token)
        wait_until(lambda: bool(cloud.google_requests), "the first request")
        assert not fetch.done()
        told = in_a_forked_child(credentials.token)
        assert fetch.result(timeout=20)
    assert told == "a token"
    assert len(cloud.tokens) == 2


def in_a_forked_child(call: Callable[[], str]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"a token" if call() else b"none")
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        is_ready, _, _ = select.select([reading], [], [], 20)
        return os.read(reading, 4096).decode() if is_ready else "nothing within 20 s"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def test_a_forked_child_gets_its_own_token_and_keeps_the_parents(
    cloud: LocalCloud,
) -> None:
    credentials = IAPCredentials(CLIENT, key_file=cloud.key_file())
    token = credentials.token()
    assert in_a_forked_child(credentials.token) == "a token"
    assert credentials.token() == token
    assert len(cloud.tokens) == 2


def test_credentials_for_an_origin_are_a_copy_with_the_same_identity(cloud: LocalCloud) -> None:
    credentials = IAPCredentials(key_file=cloud.key_file(), kind="signed_jwt")
    one = credentials.for_origin("https://one.example.com").describe()
    two = credentials.for_origin("https://two.example.com").describe()
    assert one["audience"] == "https://one.example.com/*"
    assert two["audience"] == "https://two.example.com/*"
    assert one["account"] == two["account"] == cloud.trainer
