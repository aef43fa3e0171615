"""Copies of studies."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import optuna
import pytest

from mlflow_iap_callbacks.optuna.study_object import without_objects


@pytest.fixture
def announced(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Names of the studies that Optuna has announced in its log."""
    names: list[str] = []

    class _Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.append(record.getMessage().rpartition(": ")[2])

    caplog.set_level(logging.INFO, "optuna")
    logger = logging.getLogger(optuna.storages.InMemoryStorage.__module__)
    handler = _Handler()
    logger.addHandler(handler)
    yield names
    logger.removeHandler(handler)


def test_optuna_announces_a_study_and_not_its_copy(announced: list[str]) -> None:
    study = optuna.create_study(study_name="first")
    study.set_user_attr("model", object())
    copied = without_objects(study)
    assert copied.study_name == "first"
    assert isinstance(copied.user_attrs["model"], str)
    optuna.create_study(study_name="next")
    assert announced == ["first", "next"]
