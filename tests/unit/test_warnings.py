"""Whether the package's warnings are shown, which say where data is left."""

from __future__ import annotations

import pytest

import python_process

_IMPORTED = """
import logging
from mlflow_iap_callbacks import IAPError
logging.getLogger().setLevel(logging.ERROR)
print(logging.getLogger("mlflow_iap_callbacks").isEnabledFor(logging.WARNING))
"""


@pytest.mark.parametrize(
    ("first", "is_shown"),
    [
        pytest.param("", True, id="a library raises the root logger's level"),
        pytest.param(
            "import logging; logging.getLogger('mlflow_iap_callbacks').setLevel(logging.ERROR)",
            False,
            id="the program sets the package's own level",
        ),
    ],
)
def test_only_the_level_of_the_packages_own_logger_hides_its_warnings(
    first: str, is_shown: bool
) -> None:
    done = python_process.run("-c", first + _IMPORTED, modules=())
    assert done.stdout.split() == [str(is_shown)]
