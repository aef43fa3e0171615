"""Which of the installed fonts are used for names in each script."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont

from mlflow_iap_callbacks.lightgbm import fonts

_DEFAULT = fonts._characters_of(findfont(FontProperties()))
# A character that only another one of matplotlib's own fonts has.
_STIX = fonts._characters_of(findfont("STIXGeneral"))
_OTHER = min(_STIX - _DEFAULT)
_ANCIENT = filter(str.isprintable, map(chr, range(0x13000, 0x18000)))
_UNKNOWN = next(each for each in _ANCIENT if fonts._fallbacks(frozenset(each))[1])


def _shown(name: str) -> tuple[str, list[str]]:
    text = Figure().text(0.5, 0.5, fonts.drawable(name))
    fonts.show_names([text])
    return text.get_text(), text.get_fontfamily()


def test_a_name_is_drawn_in_the_users_font_if_it_has_all_characters() -> None:
    for name in ("price", "Größe"):
        assert _shown(name) == (name, FontProperties().get_family())


def test_another_font_is_used_for_the_characters_that_only_it_has() -> None:
    name, (*usual, other) = _shown(f"a{_OTHER}")
    assert name == f"a{_OTHER}"
    assert usual == FontProperties().get_family()
    assert _OTHER in fonts._characters_of(findfont(other))


def test_a_character_that_no_font_has_is_a_square() -> None:
    name, _ = _shown(f"a{_UNKNOWN}")
    assert name == "a\N{WHITE SQUARE}"


def test_a_font_that_was_removed_has_no_characters() -> None:
    assert fonts._characters_of("missing.ttf") == frozenset()
