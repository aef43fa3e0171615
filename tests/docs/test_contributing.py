"""The page for contributors: its files exist, and its words are the source's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "src" / "mlflow_iap_callbacks"
_TEXT = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_WORDS = re.findall(r"^\| ([a-z ]+) \|", _TEXT.partition("## Words")[2], re.MULTILINE)[1:]


def test_the_files_that_it_names_exist() -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.py|\w+\.py|tests/[\w/.]+)`", _TEXT)
    assert len(names) > 10
    for name in names:
        assert (_PACKAGE / name).exists() or (_ROOT / name).exists(), name


def test_the_glossary_has_ten_to_twenty_words_in_order() -> None:
    assert 10 <= len(_WORDS) <= 20
    assert sorted(_WORDS) == _WORDS


@pytest.mark.parametrize("word", _WORDS)
def test_a_word_of_the_glossary_is_used_in_the_source(word: str) -> None:
    pattern = re.compile(word.replace("adoption", "adopt").replace(" ", "[ _]?"), re.IGNORECASE)
    assert any(pattern.search(path.read_text()) for path in _PACKAGE.rglob("*.py"))
