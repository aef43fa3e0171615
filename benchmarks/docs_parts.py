"""The parts of the documentation that the benchmarks write."""

from __future__ import annotations

from pathlib import Path

_DOCS = Path(__file__).parent.parent / "docs"
COMPARISON = _DOCS / "comparison.md"
TRAININGS = _DOCS / "trainings.md"
IMAGES = _DOCS / "images"


def put_into(page: Path, mark: str, text: str) -> None:
    """Replace the text between ``<!-- by MARK -->`` and the next ``<!-- end -->``."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- by {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    if not end:
        raise ValueError(f"{page} has no part marked as written by {mark!r}")
    page.write_text(f"{before}{start}\n{text}\n\n{end}{after}", encoding="utf-8")
