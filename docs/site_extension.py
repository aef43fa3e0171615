"""A Markdown extension that inserts text from elsewhere in the repository into the site's pages.

<!-- file: CHANGELOG.md -->    the file, with its relative links adapted
<!-- IAP's answers -->         IAP's messages with their remedies, from the package itself
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_ROOT = Path(__file__).parent.parent
_REPOSITORY = "https://github.com/mlflow-iap-callbacks/mlflow-iap-callbacks/blob/main"


class SiteExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        # Before code blocks and HTML comments are taken out of the text.
        md.preprocessors.register(_Elsewhere(md), "elsewhere", 100)


def makeExtension() -> SiteExtension:
    return SiteExtension()


class _Elsewhere(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return [each for line in lines for each in _lines_for(line)]


def _lines_for(line: str) -> list[str]:
    if line == "<!-- IAP's answers -->":
        return _answers()
    file = re.fullmatch(r"<!-- file: (\S+) -->", line)
    return _file(PurePosixPath(file[1])) if file else [line]


def _file(path: PurePosixPath) -> list[str]:
    def fitting(link: re.Match[str]) -> str:
        target = normpath(path.parent / link[1])
        is_page = target.startswith("docs/")
        return f"]({target.removeprefix('docs/') if is_page else f'{_REPOSITORY}/{target}'}"

    text = (_ROOT / path).read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)", fitting, text).splitlines()


def _answers() -> list[str]:
    from mlflow_iap_callbacks.iap.responses import _MEANINGS

    fields = {"account": "ACCOUNT", "member": "serviceAccount:ACCOUNT", "origin": "https://HOST"}
    items = (
        f"- **{says}** (`{reason}`): {means}. {remedy}".format(**fields)
        for says, (reason, means, remedy) in _MEANINGS.items()
    )
    return [line for item in items for line in (item, "")]
