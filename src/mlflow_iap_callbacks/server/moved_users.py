"""Takes over the users and permissions of a server with passwords (`--app-name basic-auth`)."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, MetaData, func, insert, select, text

from . import users_schema
from .start_error import StartError

# In the order in which they refer to each other.
_TABLES = ("roles", "users", "role_permissions", "user_role_assignments")


def move_users(old: Engine, new: Engine, domain: str) -> list[str]:
    """Copy users with their permissions, and return their e-mails.

    Nobody stays an admin, because MLFLOW_IAP_ADMINS names the admins. Passwords are not copied.

    Args:
        old: the database of the server with passwords. Its tables are migrated.
        new: this server's database, migrated with permissions on, without users.
        domain: what follows the @ for users whose names are not e-mail addresses.

    Raises:
        StartError: if there are users already, or two would have the same e-mail.
    """
    users_schema.upgrade(old)
    tables = MetaData()
    tables.reflect(new, only=_TABLES)
    with old.connect() as source, new.begin() as target:
        if target.scalar(select(func.count()).select_from(tables.tables["users"])):
            raise StartError(
                "This server's database has users already, whose permissions would be mixed up. "
                "Move users before the server starts with MLFLOW_IAP_PERMISSIONS."
            )
        rows = {
            name: [dict(row._mapping) for row in source.execute(select(tables.tables[name]))]
            for name in _TABLES
        }
        for user in rows["users"]:
            name = user["username"].lower()
            user["username"] = name if "@" in name else f"{name}@{domain}"
            user |= {"password_hash": "", "is_admin": False}
        emails = [user["username"] for user in rows["users"]]
        if twice := sorted({email for email in emails if emails.count(email) > 1}):
            raise StartError(
                f"Several users would become {', '.join(twice)}. Rename or delete all but one "
                "of each."
            )
        for name in _TABLES:
            if rows[name]:
                target.execute(insert(tables.tables[name]), rows[name])
                _count_on(target, name)
    return emails


def _count_on(connection: Connection, table: str) -> None:
    """Let PostgreSQL continue after the ids that were copied, as MySQL does by itself."""
    if connection.dialect.name == "postgresql":
        sequence = f"pg_get_serial_sequence('{table}', 'id')"
        newest = f"(SELECT MAX(id) FROM {table})"  # noqa: S608 - one of _TABLES
        connection.execute(text(f"SELECT setval({sequence}, {newest})"))
