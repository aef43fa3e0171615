"""Tells whether a database may consider two keys of tags equal, whatever its collation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_LETTER = re.compile(r"LATIN .*\bLETTER (?:.* )?([A-Z])(?: WITH .*)?")


def is_one_of(key: object, keys: Iterable[str]) -> bool:
    """Whether a database may consider a key equal to one of these.

    Collations ignore case, accents, width, invisible characters, and spaces at the end.
    """
    return _comparable(str(key)) in {_comparable(each) for each in keys}


@lru_cache(1024)
def _comparable(key: str) -> str:
    if not key.isascii():
        decomposed = unicodedata.normalize("NFKD", key)
        key = "".join(map(_plain, decomposed))
    return "".join(key.split()).casefold()


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if unicodedata.category(character)[0] in "CMZ":  # invisible, an accent, or a space
        return ""
    letter = _LETTER.fullmatch(unicodedata.name(character, ""))
    return letter[1] if letter else character
