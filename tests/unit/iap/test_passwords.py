"""Passwords in URIs are shown to nobody."""

from __future__ import annotations

import logging

import pytest
from mlflow.exceptions import MlflowException

from mlflow_iap_callbacks.errors import IAPConfigurationError
from mlflow_iap_callbacks.iap.origins import origin_of
from mlflow_iap_callbacks.iap.passwords import without_passwords
from mlflow_iap_callbacks.iap.secret_removal import remove_secrets
from mlflow_iap_callbacks.iap.unwrapping import unwrapped_errors
from own_log import said_by_us


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:S3cret@host:80/a", "http://host:80/a"),
        ("https://S3cret@host/a", "https://host/a"),
        ("https://ada:S3%40cret@host", "https://host"),
        ("http://ada:S3@cret@host/a", "http://host/a"),
        ("https://ada:S3/cr?e#t@host/a", "https://host/a"),
        ("mysql+pymysql://u:S3cret@h/db", "mysql+pymysql://h/db"),
        (
            "postgresql://h/db?user=u&password=S3cret&a=b",
            "postgresql://h/db?user=u&password=***&a=b",
        ),
        ("at 'https://h?access_token=S3cret', twice", "at 'https://h?access_token=***', twice"),
        (
            "Error for http://a:S3cret@h/x and http://b:S3cret@i/y.",
            "Error for http://h/x and http://i/y.",
        ),
        ("https://host:443/models/a@champion", "https://host:443/models/a@champion"),
        ("models:/a@champion, ada@example.com", "models:/a@champion, ada@example.com"),
    ],
)
def test_the_passwords_of_uris_are_left_out_of_a_text(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_an_error_and_those_that_led_to_it_show_no_password() -> None:
    uri = "http://ada:S3cret@host/api"

    @unwrapped_errors()
    def fail() -> None:
        try:
            raise ConnectionError(f"{uri} is away", 7)
        except ConnectionError as error:
            raise MlflowException(f"API request to {uri} failed") from error

    with pytest.raises(MlflowException) as caught:
        fail()
    assert caught.value.message == "API request to http://host/api failed"
    assert str(caught.value) == "API request to http://host/api failed"
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.args == ("http://host/api is away", 7)


def test_a_cycle_of_errors_ends_the_search() -> None:
    one, two = ValueError("http://a:S3cret@h"), ValueError("http://b:S3cret@h")
    one.__context__, two.__context__ = two, one
    remove_secrets(one)
    assert one.args == two.args == ("http://h",)


@pytest.mark.parametrize("uri", ["ftp://ada:S3cret@host", "http://ada:S3/cret@host"])
def test_a_uri_that_cannot_work_is_shown_without_its_password(uri: str) -> None:
    with pytest.raises(IAPConfigurationError) as caught:
        origin_of(uri)
    assert "S3" not in caught.value.message


def test_a_traceback_in_the_log_shows_no_password(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("http://ada:S3cret@host")
    except ValueError:
        logging.getLogger("mlflow_iap_callbacks").exception("It failed at http://ada:S3cret@host")
    assert said_by_us(caplog) == ["It failed at http://host"]
    assert "ValueError: http://host" in caplog.text
    assert "S3cret" not in caplog.text.replace('raise ValueError("http://ada:S3cret@host")', "")
