"""The page for contributors: its files exist, and the source uses its terms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "src" / "mlflow_iap_callbacks"
_TEXT = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_TERMS = re.findall(r"^\| ([a-z ]+) \|", _TEXT.partition("## Glossary")[2], re.MULTILINE)[1:]


def test_the_files_named_on_the_page_exist() -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.py|\w+\.py|tests/[\w/.]+)`", _TEXT)
    assert len(names) > 10
    for name in names:
        assert (_PACKAGE / name).exists() or (_ROOT / name).exists(), name


def test_the_glossary_has_ten_to_twenty_terms_in_order() -> None:
    assert 10 <= len(_TERMS) <= 20
    assert sorted(_TERMS) == _TERMS


@pytest.mark.parametrize("term", _TERMS)
def test_the_source_uses_each_term_of_the_glossary(term: str) -> None:
    pattern = re.compile(term.replace("adoption", "adopt").replace(" ", "[ _]?"), re.IGNORECASE)
    assert any(pattern.search(path.read_text()) for path in _PACKAGE.rglob("*.py"))
