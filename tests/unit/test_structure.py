"""The shape of the package: who imports whom, and what an import costs."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlflow_iap_callbacks
import python_process

_PACKAGE = Path(mlflow_iap_callbacks.__file__).parent

# From what a user calls down to what knows nothing of the rest: imports point to the right.
_LAYERS = [
    {"cli"},
    {"doctor"},
    {"lightgbm_callback", "optuna_callback"},
    {"lightgbm_training", "lightgbm_results", "optuna_study", "summary"},
    {"fluent", "lightgbm_curves", "optuna_failures", "optuna_pictures"},
    {"lightgbm_data", "lightgbm_endings", "lightgbm_params", "lightgbm_pictures", "optuna_trials"},
    {"lightgbm_boosters"},
    {"runs"},
    {"process"},
    {"sender", "sigterm"},
    {"delivery", "outbox.journals"},
    {"logged_models", "outbox.rescue", "starting"},
    {"client", "names", "outbox", "refusals"},
    {"outbox.outbox"},
    {"mlflow_plugin"},
    {"iap_auth"},
    {"exchange"},
    {"credentials", "iap_answers", "retry"},
    {"outbox.database", "outbox.file_lock", "outbox.intake"},
    {"google_identity"},
    {"google_errors"},
    {"errors"},
]
_RANK = {name: rank for rank, layer in enumerate(_LAYERS) for name in layer}
# Who may know a library that one module owns.
_OWNERS = {
    "google": {"google_identity", "google_errors"},
    "msgpack": {"outbox.intake", "outbox.outbox"},
    "platformdirs": {"outbox.journals"},
    "sqlite3": {"outbox.database", "outbox.journals", "outbox.rescue"},
    "tenacity": {"retry"},
    "optuna": {"optuna_callback", "optuna_pictures", "optuna_study"},
    "lightgbm": {"lightgbm_params", "lightgbm_results"},
    "matplotlib": {"lightgbm_pictures", "optuna_pictures"},
    "aiohttp": set(),
}


def _path(name: str) -> Path:
    path = _PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _name(path: Path) -> str:
    parts = path.relative_to(_PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _imports(name: str) -> list[tuple[str, bool]]:
    """Modules that a module imports: ("name", True) for the package's own."""
    found = []
    path = _path(name)
    folder = ".".join(path.parent.relative_to(_PACKAGE).parts)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            start = folder if node.level == 1 else ""
            names = [".".join(filter(None, (start, node.module)))]
            # Of a package's modules, those that are imported by name; else the package's own names.
            inner = [f"{names[0]}.{alias.name}".strip(".") for alias in node.names]
            known = [each for each in inner if each in _RANK]
            found += [(each, True) for each in known or names]
        elif isinstance(node, ast.ImportFrom):
            found.append((str(node.module).partition(".")[0], False))
    return found


@pytest.mark.parametrize("name", sorted(_RANK))
def test_imports_point_one_way(name: str) -> None:
    for imported, is_ours in _imports(name):
        if is_ours and imported != "local":
            assert _RANK[imported] > _RANK[name], f"{name} imports {imported}"
        elif is_ours:
            assert name == "cli", "only the command starts a local cloud"


@pytest.mark.parametrize("library", sorted(_OWNERS))
def test_a_library_has_its_owner(library: str) -> None:
    users = {name for name in _RANK if (library, False) in _imports(name)}
    assert users <= _OWNERS[library]


def test_every_module_has_its_place() -> None:
    found = {_name(path) for path in _PACKAGE.rglob("*.py")}
    apart = ("local", "server")
    assert {name for name in found if not name.startswith(apart)} == {*_RANK, "__init__"}


def test_the_local_cloud_knows_nothing_of_what_it_tests() -> None:
    for path in (_PACKAGE / "local").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "mlflow_iap" in str(node.module):
                assert str(node.module).startswith("mlflow_iap_callbacks.local"), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == "mlflow"), path


def test_the_server_stands_apart() -> None:
    for path in (_PACKAGE / "server").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path
            if isinstance(node, ast.ImportFrom) and "mlflow_iap" in str(node.module):
                ours = str(node.module)
                assert ours.startswith(("mlflow_iap_callbacks.server", "mlflow_iap_callbacks.err"))
    for name in _RANK:
        assert not any(ours and imported.startswith("server") for imported, ours in _imports(name))


@pytest.mark.parametrize("part", ["local", "server"])
def test_imports_within_a_part_make_no_circle(part: str) -> None:
    graph = TopologicalSorter[str]()
    for path in (_PACKAGE / part).glob("[!_]*.py"):
        graph.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text())):
            module = str(node.module) if isinstance(node, ast.ImportFrom) else ""
            if module == f"mlflow_iap_callbacks.{part}":
                graph.add(path.stem, *(alias.name for alias in node.names))
            elif module.startswith(f"mlflow_iap_callbacks.{part}."):
                graph.add(path.stem, module.rpartition(".")[2])
    graph.prepare()


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mlflow_iap_callbacks", {"mlflow", "optuna", "lightgbm", "google.auth"}),
        ("import mlflow_iap_callbacks", {"mlflow_iap_callbacks.server", "starlette"}),
        ("import mlflow_iap_callbacks.server.app", {"mlflow.server", "optuna", "requests"}),
        ("import mlflow_iap_callbacks.server.artifacts", {"optuna", "google.cloud.storage"}),
        ("from mlflow_iap_callbacks import IAPMlflowClient", {"optuna", "lightgbm"}),
        ("from mlflow_iap_callbacks import IAPMLflowCallback", {"optuna", "lightgbm"}),
        ("from mlflow_iap_callbacks import IAPLightGBMCallback", {"optuna", "lightgbm"}),
        ("import mlflow_iap_callbacks.local", {"mlflow", "optuna", "lightgbm"}),
    ],
)
def test_an_import_brings_no_more_than_it_needs(statement: str, absent: set[str]) -> None:
    script = f"{statement}; import sys; print(sorted({absent!r} & set(sys.modules)))"
    done = python_process.run("-c", script, is_fresh=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert sorted(mlflow_iap_callbacks.__all__) == mlflow_iap_callbacks.__all__
    for name in mlflow_iap_callbacks.__all__:
        assert getattr(mlflow_iap_callbacks, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        mlflow_iap_callbacks.nonsense  # noqa: B018
