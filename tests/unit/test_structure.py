"""The shape of the package: who imports whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlflow_iap_callbacks

_PACKAGE = Path(mlflow_iap_callbacks.__file__).parent

# From what a user calls down to what knows nothing of the rest: imports point to the right.
_LAYERS = [
    {"cli"},
    {"doctor"},
    {"lightgbm_callback", "optuna_callback"},
    {"optuna_study", "summary"},
    {"fluent", "optuna_failures", "optuna_pictures"},
    {"optuna_trials"},
    {"runs"},
    {"process"},
    {"sender"},
    {"delivery", "journals"},
    {"rescue", "starting"},
    {"client", "names", "outbox", "refusals"},
    {"mlflow_plugin"},
    {"iap_auth"},
    {"exchange"},
    {"credentials", "database", "file_lock", "iap_answers", "intake", "retry"},
    {"google_identity"},
    {"google_errors"},
    {"errors"},
]
_RANK = {name: rank for rank, layer in enumerate(_LAYERS) for name in layer}
# Who may know a library that one module owns.
_OWNERS = {
    "google": {"google_identity", "google_errors"},
    "msgpack": {"intake", "outbox"},
    "platformdirs": {"journals"},
    "sqlite3": {"database", "journals", "rescue"},
    "tenacity": {"retry"},
    "optuna": {"optuna_callback", "optuna_pictures", "optuna_study"},
    "lightgbm": set(),
    "aiohttp": set(),
}


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports: ("name", True) for the package's own."""
    found = []
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(str(name), True) for name in names]
        elif isinstance(node, ast.ImportFrom):
            found.append((str(node.module).partition(".")[0], False))
    return found


@pytest.mark.parametrize("name", sorted(_RANK))
def test_imports_point_one_way(name: str) -> None:
    for imported, is_ours in _imports(_PACKAGE / f"{name}.py"):
        if is_ours and imported != "local":
            assert _RANK[imported] > _RANK[name], f"{name} imports {imported}"
        elif is_ours:
            assert name == "cli", "only the command starts a local cloud"


@pytest.mark.parametrize("library", sorted(_OWNERS))
def test_a_library_has_its_owner(library: str) -> None:
    users = {name for name in _RANK if (library, False) in _imports(_PACKAGE / f"{name}.py")}
    assert users <= _OWNERS[library]


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in _PACKAGE.glob("*.py")} == {*_RANK, "__init__"}


def test_the_local_cloud_knows_nothing_of_what_it_tests() -> None:
    for path in (_PACKAGE / "local").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "mlflow_iap" in str(node.module):
                assert str(node.module).startswith("mlflow_iap_callbacks.local"), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == "mlflow"), path


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mlflow_iap_callbacks", {"mlflow", "optuna", "lightgbm", "google.auth"}),
        ("from mlflow_iap_callbacks import IAPMlflowClient", {"optuna", "lightgbm"}),
        ("from mlflow_iap_callbacks import IAPMLflowCallback", {"optuna", "lightgbm"}),
        ("from mlflow_iap_callbacks import IAPLightGBMCallback", {"optuna", "lightgbm"}),
        ("import mlflow_iap_callbacks.local", {"mlflow", "optuna", "lightgbm"}),
    ],
)
def test_an_import_brings_no_more_than_it_needs(statement: str, absent: set[str]) -> None:
    script = f"{statement}; import sys; print(sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert sorted(mlflow_iap_callbacks.__all__) == mlflow_iap_callbacks.__all__
    for name in mlflow_iap_callbacks.__all__:
        assert getattr(mlflow_iap_callbacks, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        mlflow_iap_callbacks.nonsense  # noqa: B018
