"""The documentation's pages, and the code in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Pages whose Python code runs on this machine, and all pages.
GUIDE = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = (*GUIDE, ROOT / "appengine" / "README.md", ROOT / "CHANGELOG.md")

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Args:
        page: the file that contains it.
        line: number of its first line in the file.
        language: the language that the fence names.
        text: the code, without indentation.
    """

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks in one language, in the order of the page."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[2], textwrap.dedent(match[3]))
        for match in _FENCED.finditer(text)
    ]
    return [block for block in found if block.language == language]


def commands(page: Path) -> list[str]:
    """The shell commands of a page, one per line, including those in its sentences."""
    shell = "\n".join(block.text for block in blocks(page, "sh")).replace("\\\n", " ")
    sentences = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return [*shell.splitlines(), *re.findall(r"`([^`\n]+)`", sentences)]


def links(page: Path) -> list[str]:
    """The targets of the links and images on a page."""
    sentences = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", sentences)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
