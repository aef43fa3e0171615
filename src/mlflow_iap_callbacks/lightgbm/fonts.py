"""Shows names in plots as they are, in whatever script they are written."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

_NO_GLYPH = "\N{WHITE SQUARE}"


def drawable(name: str) -> str:
    """Return a name with a square for each character that no installed font has."""
    plain = "".join(each if each.isprintable() else " " for each in name)
    _, missing = _fallbacks(_missing_in(plain))
    return "".join(_NO_GLYPH if each in missing else each for each in plain)


def show_names(texts: Iterable[Text]) -> None:
    """Draw the texts as they are, not as formulas, in fonts that have their characters."""
    for text in texts:
        text.set_parse_math(False)  # ``price_$`` is a name
        families, _ = _fallbacks(_missing_in(text.get_text()))
        if families:
            text.set_fontfamily([*_default().get_family(), *families])


@functools.cache
def _fallbacks(characters: frozenset[str]) -> tuple[Sequence[str], frozenset[str]]:
    """Find installed fonts with these characters.

    Returns:
        Names of the fonts, and the characters that no font has.
    """
    families: list[str] = []
    # Matplotlib's font of last resort has a placeholder for each script.
    installed: list[Any] = [each for each in fontManager.ttflist if "Last Resort" not in each.name]
    regular_first = sorted(installed, key=lambda font: (font.style != "normal", font.weight != 400))
    for font in regular_first:
        if not characters:
            break
        found = characters & _characters_of(font.fname)
        if found:
            families.append(font.name)
            characters -= found
    return families, characters


def _missing_in(name: str) -> frozenset[str]:
    """Characters that the font of the user's settings does not have."""
    if name.isascii():
        return frozenset()
    return frozenset(name) - _characters_of(findfont(_default()))


def _default() -> FontProperties:
    return FontProperties()


@functools.cache
def _characters_of(path: str) -> frozenset[str]:
    try:
        font = get_font(path)
        # Matplotlib cannot draw bitmaps, such as most emojis.
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # a font that was removed, or is damaged
        return frozenset()
