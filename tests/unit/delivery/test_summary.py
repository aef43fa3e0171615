"""The table of a summary, as text and in a notebook."""

from __future__ import annotations

from mlflow_iap_callbacks.delivery.summary import Summary


def test_as_text_it_has_two_columns() -> None:
    lines = str(Summary({"study mine": "2 COMPLETE", "best": "trial 0"})).splitlines()
    assert lines == [" study mine  2 COMPLETE", " best        trial 0"]


def test_a_long_link_is_not_broken() -> None:
    link = f"https://mlflow.example/{'x' * 500}"
    assert link in str(Summary({"link": link}))


def test_in_a_notebook_names_are_escaped() -> None:
    html = Summary({"study <b>": "a & b"})._repr_html_()
    assert html.startswith("<table>")
    assert "study &lt;b&gt;" in html
    assert "a &amp; b" in html


def test_an_empty_summary_is_empty() -> None:
    assert str(Summary({})) == ""
