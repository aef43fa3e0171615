"""Storages by their URLs: what is opened, and what an error says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from mlflow_iap_callbacks.optuna.storage import StorageError, open_storage, studies_of


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database, which takes Optuna long to create."""
    path = tmp_path_factory.mktemp("database") / "study.db"
    optuna.create_study(storage=f"sqlite:///{path}", study_name="in a database")
    return path


@pytest.fixture(autouse=True)
def files(database: Path) -> Iterator[set[str]]:
    """Names of the files in the folder that is the current one."""
    shutil.copy(database, "study.db")
    journal = optuna.storages.JournalStorage(JournalFileBackend("journal"))
    optuna.create_study(storage=journal, study_name="in a file")
    Path("damaged").write_bytes(b"\x80\xff\n" * 2)
    Path("empty.db").touch()
    names = {path.name for path in Path().iterdir()}
    yield names
    # No URL creates a file, no matter how wrong it is.
    assert {path.name for path in Path().iterdir()} == names


def _studies(url: str, name: str | None = None) -> list[str]:
    return [study.study_name for study in studies_of(open_storage(url), url, name)]


@pytest.mark.parametrize(
    ("url", "name"), [("sqlite:///study.db", "in a database"), ("journal", "in a file")]
)
def test_a_storage_is_the_url_of_a_database_or_the_path_of_a_journal(url: str, name: str) -> None:
    assert _studies(url) == _studies(url, name) == [name]


def test_all_studies_are_loaded_unless_one_is_named() -> None:
    optuna.create_study(storage="sqlite:///study.db", study_name="another")
    assert _studies("sqlite:///study.db") == ["another", "in a database"]
    assert _studies("sqlite:///study.db", "another") == ["another"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///none.db", "There is no file 'none.db'. Check the path in sqlite:///none.db."),
        ("none", "There is no file 'none', and it is not a URL. Give the URL of a database,"),
        ("study.db", "is not a JournalStorage file. For an SQLite file, write sqlite:///st"),
        ("damaged", "damaged is not a JournalStorage file."),
        ("sqlite:///empty.db", "sqlite:///empty.db has no Optuna tables. Check the URL."),
        ("sqlite:///damaged", "sqlite:///damaged cannot be read. file is not a database."),
        ("grpc://localhost:13000", "Optuna has no storage for 'grpc'. Give the URL of a"),
        (
            "oracle://u:secret@h/x",
            r"oracle://u:\*\*\*@h/x needs '.*', which is not installed. Install it",
        ),
        (
            "mysql+pymysql://u:secret@127.0.0.1:1/x?password=secret",
            r"mysql\+pymysql://u:\*\*\*@127.0.0.1:1/x cannot be read. .*Can't connect to MySQL",
        ),
        ("empty.db", "There is no study in empty.db. Check the URL."),
    ],
)
def test_a_storage_that_cannot_be_read_is_one_line_that_says_what_to_do(
    url: str, said: str
) -> None:
    with pytest.raises(StorageError, match=said) as raised:
        _studies(url)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_study_that_is_not_there_is_an_error_that_says_which_are() -> None:
    with pytest.raises(StorageError) as raised:
        _studies("sqlite:///study.db", "mine")
    assert str(raised.value) == (
        "There is no study 'mine' in sqlite:///study.db. It has 'in a database'."
    )
