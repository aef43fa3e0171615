"""The forms of a record in a journal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_iap_callbacks.outbox.records import (
    ROW,
    Record,
    doubles,
    joined_names,
    length,
    packed,
)

_NAMES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))


@given(st.dictionaries(_NAMES, st.floats(allow_nan=False), min_size=1), st.integers(0, 2**53))
def test_a_row_is_read_as_metrics_with_the_same_names_and_numbers(
    metrics: dict[str, float], step: int
) -> None:
    values = doubles(len(metrics)).pack(*metrics.values())
    content = (step, 7, joined_names(metrics), values)
    record = Record.from_message(3, packed((1, ROW, content)))
    assert record[:3] == (3, "metrics", [step, 7, metrics])
    assert length(ROW, content) == length(*record[1:3]) == len(metrics)


@pytest.mark.parametrize("names", [[], ["a\nb"], ["a", "b\n"], ["\n", "a"]])
def test_names_that_could_not_be_separated_again_are_not_joined(names: list[str]) -> None:
    assert joined_names(names) is None


def test_metrics_of_earlier_versions_and_with_such_names_are_read_as_they_are() -> None:
    content: list[Any] = [1, 2, {"a\nb": 0.5, "c": 3}]
    record = Record.from_message(1, packed((1, "metrics", content)))
    assert (record.kind, record.content) == ("metrics", content)
