"""Everything that the documentation names exists: commands, options, files, links, variables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mlflow_iap_callbacks.cli.commands import main
from pages import PAGES, ROOT, commands, links, name_of

_REPOSITORY = "mlflow-iap-callbacks/mlflow-iap-callbacks"
_HERE = re.compile(
    rf"https://(?:github\.com/{_REPOSITORY}/blob|raw\.githubusercontent\.com/{_REPOSITORY})/main/"
)


def parse(words: list[str]) -> None:
    """Let click parse a command's words without running it.

    Raises:
        click.UsageError: there is no such command, or it has no such option.
    """
    with click.Context(main, info_name="mlflow-iap") as context:
        name, command, rest = main.resolve_command(context, words)
        assert command is not None
        parsed = command.make_context(name, rest, parent=context)
    # `local` passes everything that it does not know on to its command.
    given: tuple[str, ...] = parsed.params.get("command", ())
    if given and given[0].startswith("-"):
        raise click.NoSuchOption(given[0])


def test_an_option_that_does_not_exist_is_detected() -> None:
    parse(shlex.split("local --token-lifetime 2 -- python --version"))
    for wrong in ("nothing", "sync --everything", "local --lifetime 2 -- python"):
        with pytest.raises(click.UsageError):
            parse(shlex.split(wrong))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_command_on_a_page_is_valid(page: Path) -> None:
    for command in commands(page):
        for found in re.findall(r"(?<![\w./-])mlflow-iap ([^$|;)&]+)", command):
            parse(shlex.split(found, comments=True))
        for path in re.findall(r"\b(?:python|bash) ((?:examples|benchmarks)/[\w./-]+)", command):
            assert (ROOT / path).exists(), command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_make_target_on_a_page_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {name for command in commands(page) for name in re.findall(r"^make ([\w-]+)", command)}
    assert named <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_variable_on_a_page_is_used_in_the_code(page: Path) -> None:
    named = set(re.findall(r"\bMLFLOW_(?:IAP|SERVER)_[A-Z_]*[A-Z]\b", page.read_text()))
    # The tests too, because the code builds some names from parts.
    folders = (ROOT / "src", ROOT / "tests")
    code = "\n".join(path.read_text() for each in folders for path in each.rglob("*.py"))
    assert {name for name in named if name not in code} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_link_into_the_repository_leads_to_a_file(page: Path) -> None:
    for link in links(page):
        target = link.partition("#")[0]
        if _HERE.match(target):
            assert (ROOT / _HERE.sub("", target)).exists(), link
        elif target and "://" not in target:
            assert (page.parent / target).exists(), link


def test_the_links_of_the_readme_also_work_on_pypi() -> None:
    assert [link for link in links(ROOT / "README.md") if "://" not in link] == []


def test_the_site_has_exactly_the_pages_in_docs() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages_of(settings["nav"])) == sorted(
        path.name for path in (ROOT / "docs").glob("*.md")
    )


def pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for each in inner for page in pages_of(each)]
