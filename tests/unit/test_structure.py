"""The structure of the package: which module imports which, and what an import costs."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import mlflow_iap_callbacks
import python_process
from forked_test import run_forked

_PACKAGE = Path(mlflow_iap_callbacks.__file__).parent
_NAME = _PACKAGE.name

# Which other folders each folder, or the package itself, may import.
_MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"background", "delivery", "iap", "lightgbm", "optuna"},
    "background": {"delivery", "iap"},
    "cli": {"delivery", "iap", "local", "optuna", "outbox"},
    "optuna": {"delivery", "iap"},
    "lightgbm": {"delivery", "iap", "outbox"},
    "delivery": {"iap", "outbox"},
    "outbox": set(),
    "iap": set(),
    "local": set(),
    "server": set(),
}
# The files beside the folders, which every folder may import, and which import nothing.
_SHARED = {"errors", "limits", "plurals", "tags"}
# The only modules that may import a library.
_OWNERS = {
    "google": {f"iap.google_{name}" for name in ("errors", "identity", "requests", "tokens")},
    "msgpack": {"outbox.format_1", "outbox.intake", "outbox.records"},
    "platformdirs": {"outbox.journal_folder"},
    "sqlite3": {
        f"outbox.{name}"
        for name in ("adoption", "database", "format_1", "journal_content", "journal_folder")
    },
    "tenacity": {"iap.retry_policy"},
    "optuna": {
        *("optuna.packed_study", "optuna.plots", "optuna.storage", "optuna.study_files"),
        *("optuna.study_object", "optuna.study_run", "optuna.track_in_mlflow"),
    },
    "lightgbm": {
        f"lightgbm.{name}"
        for name in ("endings", "estimators", "finished_model", "inputs", "params")
    },
    "matplotlib": {"lightgbm.fonts", "lightgbm.plots", "optuna.plots"},
    "aiohttp": {"cli.proxy", "iap.proxy"},
}
_MODULES = sorted(
    ".".join(path.relative_to(_PACKAGE).with_suffix("").parts) for path in _PACKAGE.rglob("*.py")
)


def _place(module: str) -> str:
    return module.partition(".")[0]


class _Source(NamedTuple):
    """What a module imports, by absolute names; for this package, names of modules."""

    imports: frozenset[str]
    imports_for_types: frozenset[str]
    texts: frozenset[str]


@cache
def _source(module: str) -> _Source:
    nodes = [*ast.walk(ast.parse((_PACKAGE / f"{module.replace('.', '/')}.py").read_text()))]
    blocks = [node.body for node in nodes if isinstance(node, ast.If) and _is_for_types(node)]
    for_types = {inner for block in blocks for node in block for inner in ast.walk(node)}
    return _Source(
        frozenset(_each_import(module, [node for node in nodes if node not in for_types])),
        frozenset(_each_import(module, for_types)),
        frozenset(
            node.value
            for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ),
    )


def _is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _each_import(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    package = [_NAME, *module.split(".")[:-1]]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*start, *filter(None, [node.module])])
            inner = {f"{name}.{alias.name}" for alias in node.names}
            yield from {each for each in inner if _module_of(each)} or {name}


def _imports(module: str) -> frozenset[str]:
    return _source(module).imports | _source(module).imports_for_types


def _module_of(name: str) -> str | None:
    """The package's module for an absolute name; for a folder, its ``__init__``."""
    ours = name.removeprefix(_NAME).removeprefix(".")
    names = (ours, f"{ours}.__init__".removeprefix("."))
    return next((each for each in names if _place(name) == _NAME and each in _MODULES), None)


def _of_the_package(module: str) -> set[str]:
    return set(filter(None, map(_module_of, _imports(module))))


@pytest.mark.parametrize("place", sorted({_place(module) for module in _MODULES}))
def test_a_folder_imports_only_what_its_rule_allows(place: str) -> None:
    for module in _MODULES:
        if _place(module) == place:
            others = {_place(name) for name in _of_the_package(module)} - {place}
            allowed = set() if place in _SHARED else _MAY_IMPORT[place] | _SHARED
            assert others <= allowed, module


def test_there_is_one_rule_for_each_folder_and_one_for_the_files_beside_them() -> None:
    assert {_place(module) for module in _MODULES} == _MAY_IMPORT.keys() | _SHARED
    assert len(_MAY_IMPORT) + 1 <= 12


def test_there_are_no_circular_imports() -> None:
    TopologicalSorter(_MAY_IMPORT).prepare()
    graph: TopologicalSorter[str] = TopologicalSorter()
    for module in _MODULES:
        graph.add(module, *_of_the_package(module))
    graph.prepare()


@pytest.mark.parametrize("library", sorted(_OWNERS))
def test_each_library_is_imported_only_by_its_owners(library: str) -> None:
    users = {module for module in _MODULES if library in map(_place, _source(module).imports)}
    assert {u for u in users if _place(u) not in ("local", "server")} <= _OWNERS[library]


def test_every_tag_is_defined_in_one_module() -> None:
    for module in _MODULES:
        tags = {
            text
            for text in _source(module).texts
            if text.startswith(("mlflow_iap.", "mlflow_iap:"))
        }
        assert not tags or module == "tags", f"{module} writes {tags}"


def test_the_local_cloud_does_not_use_the_client_that_it_tests() -> None:
    for module in _MODULES:
        if _place(module) == "local":
            assert "mlflow" not in _imports(module), module
            assert {_place(name) for name in _of_the_package(module)} <= {"local"}, module


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mlflow_iap_callbacks", {"mlflow", "optuna", "lightgbm", "google.auth"}),
        ("import mlflow_iap_callbacks", {"mlflow_iap_callbacks.server", "starlette"}),
        ("import mlflow_iap_callbacks.server.app", {"mlflow.server", "optuna", "requests"}),
        ("import mlflow_iap_callbacks.server.artifacts", {"optuna", "google.cloud.storage"}),
        (
            "from mlflow_iap_callbacks import IAPMlflowClient, IAPMLflowCallback, "
            "IAPLightGBMCallback",
            {"optuna", "lightgbm"},
        ),
        ("from mlflow_iap_callbacks.local import LocalCloud", {"mlflow", "optuna", "lightgbm"}),
        ("import mlflow_iap_callbacks.local.pytest_fixtures", {"mlflow", "aiohttp", "requests"}),
        ("import mlflow_iap_callbacks.cli.commands", {"mlflow", "optuna", "lightgbm"}),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, absent: set[str]) -> None:
    script = f"{statement}; import sys; print(sorted({absent!r} & set(sys.modules)))"
    if absent <= {"optuna", "lightgbm", "google.cloud.storage"}:  # MLflow may be there already
        loaded = run_forked(script, os.environ, again=(_NAME, *absent))
    else:
        done = python_process.run("-c", script, modules=())
        assert done.returncode == 0, done.stderr
        loaded = done.stdout
    assert loaded.strip() == "[]"


def test_the_public_names_are_complete_and_sorted() -> None:
    assert sorted(mlflow_iap_callbacks.__all__) == mlflow_iap_callbacks.__all__
    for name in mlflow_iap_callbacks.__all__:
        assert getattr(mlflow_iap_callbacks, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        mlflow_iap_callbacks.nonsense  # noqa: B018
