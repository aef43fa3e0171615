"""Opens storages by URL, in the forms that Optuna's own command line accepts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from sqlalchemy.engine import URL, make_url

_MOST_NAMES = 10


class StorageError(Exception):
    """A storage cannot be opened, or has no such study; the message says what to do."""


def open_storage(url: str) -> BaseStorage:
    """Open a storage that exists.

    Args:
        url: URL of a database or of Redis, or the path of a file of ``JournalStorage``.

    Raises:
        StorageError: it cannot be opened.
    """
    if url.startswith("redis"):
        return _journal(url, JournalRedisBackend)
    if os.path.isfile(url):
        return _journal(url, JournalFileBackend)
    try:
        parsed = make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise StorageError(
            f"There is no file {url!r}, and it is not a URL. Give the URL of a database, such as "
            "sqlite:///study.db, or the path of a file of JournalStorage."
        ) from None
    return _database(url, parsed)


def studies_of(storage: BaseStorage, url: str, name: str | None) -> Sequence[optuna.Study]:
    """Load the studies of a storage, or one of them.

    Raises:
        StorageError: there is none, or none with this name.
    """
    try:
        names = sorted(optuna.get_all_study_names(storage))
    except Exception as error:  # noqa: BLE001 - whatever the storage raises
        raise _unreadable(url, error) from None
    if not names:
        raise StorageError(f"There is no study in {_shown(url)}. Check the URL.")
    if name is not None and name not in names:
        more = ", ..." if len(names) > _MOST_NAMES else "."
        listed = ", ".join(map(repr, names[:_MOST_NAMES])) + more
        raise StorageError(f"There is no study {name!r} in {_shown(url)}. It has {listed}")
    return [
        optuna.load_study(study_name=each, storage=storage, sampler=optuna.samplers.RandomSampler())
        for each in (names if name is None else [name])
    ]


def _journal(
    url: str, backend: type[JournalFileBackend] | type[JournalRedisBackend]
) -> BaseStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return JournalStorage(backend(url))
    except ImportError as error:
        raise _driver_error(url, error) from None
    except ValueError:
        raise StorageError(
            f"{url} is not a JournalStorage file. For an SQLite file, write sqlite:///{url}."
        ) from None
    except Exception as error:  # noqa: BLE001 - such as those of Redis
        raise _unreadable(url, error) from None


def _database(url: str, parsed: URL) -> BaseStorage:
    path = parsed.database or ""
    is_file = parsed.get_backend_name() == "sqlite" and not path.startswith("file:")
    if is_file and not os.path.isfile(path):  # SQLite would create one
        raise StorageError(f"There is no file {path!r}. Check the path in {_shown(url)}.")
    try:
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            has_studies = sqlalchemy.inspect(connection).has_table("studies")
        engine.dispose()
        if has_studies:
            return RDBStorage(url, skip_table_creation=True)
    except ImportError as error:
        raise _driver_error(url, error) from None
    except sqlalchemy.exc.NoSuchModuleError:
        raise StorageError(
            f"Optuna has no storage for {parsed.drivername!r}. Give the URL of a database, such as "
            "mysql+pymysql://USER:PASSWORD@HOST/NAME."
        ) from None
    except Exception as error:  # noqa: BLE001 - the driver's, or Optuna's for another version
        raise _unreadable(url, error) from None
    raise StorageError(f"{_shown(url)} has no Optuna tables. Check the URL.")


def _driver_error(url: str, error: ImportError) -> StorageError:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    name = cause.name or url.partition(":")[0]
    return StorageError(f"{_shown(url)} needs {name!r}, which is not installed. Install it.")


def _unreadable(url: str, error: Exception) -> StorageError:
    # SQLAlchemy adds the statement and a link on further lines.
    cause = getattr(error, "orig", None) or error
    first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
    return StorageError(f"{_shown(url)} cannot be read. {first_line}.")


def _shown(url: str) -> str:
    """The URL without its secrets."""
    if "://" not in url:
        return url
    return make_url(url).set(query={}).render_as_string(hide_password=True)
