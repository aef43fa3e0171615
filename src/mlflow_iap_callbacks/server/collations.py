"""Makes MySQL and MariaDB tell apart all names, whatever the collation of a database was.

Many collations consider C and c equal, which loses one of two metrics; or `mlflow.user` and
`mlflow.user ` with a space, so that the tag of a record's owner can be written under another name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, bindparam, inspect, text

# MySQL's and MariaDB's collations that compare all characters, also spaces at the end.
_EXACT = ("utf8mb4_0900_bin", "utf8mb4_nopad_bin")


def inexact_tables(engine: Engine) -> list[str]:
    """Return the tables of a database that may consider different names equal."""
    statement = text(
        "SELECT DISTINCT table_name FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND data_type IN ('char', 'varchar')"
        " AND collation_name NOT IN :exact"
    ).bindparams(bindparam("exact", expanding=True))
    with engine.begin() as connection:
        return sorted(connection.execute(statement, {"exact": _EXACT}).scalars())


def make_exact(engine: Engine) -> None:
    """Let a database and its tables tell apart all names.

    Its foreign keys are dropped and created again: MariaDB does not change the columns of one.
    """
    tables = inexact_tables(engine)
    keys: list[tuple[str, Any]] = [
        (table, key) for table in tables for key in inspect(engine).get_foreign_keys(table)
    ]
    quote = engine.dialect.identifier_preparer.quote_identifier
    with engine.begin() as connection:
        known = text("SELECT collation_name FROM information_schema.collations")
        collations = set(connection.execute(known).scalars())
        exact = next(name for name in _EXACT if name in collations)
        change = f"CHARACTER SET utf8mb4 COLLATE {exact}"
        statements = [
            # For tables of later versions, whose keys must have the collation of those they name.
            f"ALTER DATABASE {quote(engine.url.database or '')} {change}",
            "SET FOREIGN_KEY_CHECKS = 0",
            *(
                f"ALTER TABLE {quote(table)} DROP FOREIGN KEY {quote(key['name'])}"
                for table, key in keys
            ),
            *(f"ALTER TABLE {quote(table)} CONVERT TO {change}" for table in tables),
            *(f"ALTER TABLE {quote(table)} ADD {_definition(key, quote)}" for table, key in keys),
            "SET FOREIGN_KEY_CHECKS = 1",
        ]
        for statement in statements:
            connection.execute(text(statement))


def _definition(key: Any, quote: Callable[[str], str]) -> str:
    here, there = (
        ", ".join(map(quote, key[each])) for each in ("constrained_columns", "referred_columns")
    )
    actions = "".join(
        f" {name.replace('on', 'ON ')} {action}" for name, action in key["options"].items()
    )
    return (
        f"CONSTRAINT {quote(key['name'])} FOREIGN KEY ({here})"
        f" REFERENCES {quote(key['referred_table'])} ({there}){actions}"
    )
