"""What users deleted is deleted for good only after a time that is stated clearly."""

from __future__ import annotations

import pytest
from sqlalchemy import URL

from mlflow_iap_callbacks.server.garbage import delete_garbage
from mlflow_iap_callbacks.server.start_error import StartError


@pytest.mark.parametrize("time", ["", " ", "30", "d", "1.5d", "-1d", "1h2d", "30 days", "1d\n"])
def test_a_malformed_time_is_an_error_before_anything_is_deleted(time: str) -> None:
    with pytest.raises(StartError, match="is not a length of time"):
        delete_garbage(URL.create("sqlite"), "gs-sessions://bucket/artifacts", time)
