"""The accounts of the local Google Cloud, their keys, and who may impersonate whom."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Literal

from .keys import RsaKey

PROJECT_ID = "local-project"
PROJECT_NUMBER = "123456789012"

TRAINER = f"trainer@{PROJECT_ID}.iam.gserviceaccount.com"
VM_ACCOUNT = f"{PROJECT_NUMBER}-compute@developer.gserviceaccount.com"
USER = "ada@example.com"

WORKLOAD_POOL = f"projects/{PROJECT_NUMBER}/locations/global/workloadIdentityPools/local-pool"
WORKLOAD = f"principal://iam.googleapis.com/{WORKLOAD_POOL}/subject/local-workload"

DEFAULT_CUSTOM_CLIENT_ID = f"{PROJECT_NUMBER}-mlflow.apps.googleusercontent.com"
DESKTOP_CLIENT_ID = f"{PROJECT_NUMBER}-desktop.apps.googleusercontent.com"
# Google-managed clients belong to one of Google's own projects, hence the other number.
MANAGED_CLIENT_ID = "369001918367-managed.apps.googleusercontent.com"
GCLOUD_CLIENT_ID = "764086051850-6qr4p6gpi6hn506pt8ejuq83di341hur.apps.googleusercontent.com"


@dataclass(frozen=True)
class Account:
    """A user, a service account or a federated workload.

    Attributes:
        name: its e-mail; a federated workload has none and uses its `principal://` name.
        kind: which of the three it is.
    """

    name: str
    kind: Literal["user", "service_account", "workload"]

    @property
    def id(self) -> str:
        """The account's unique id at Google, 21 digits."""
        digits = int(hashlib.sha256(self.name.encode()).hexdigest(), 16)
        return f"1{digits:020d}"[:21]


class Accounts:
    """All accounts, the keys of the service accounts, and the Token Creator role bindings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while a key is generated
        self._accounts = {
            USER: Account(USER, "user"),
            WORKLOAD: Account(WORKLOAD, "workload"),
            TRAINER: Account(TRAINER, "service_account"),
            VM_ACCOUNT: Account(VM_ACCOUNT, "service_account"),
        }
        self._keys: dict[str, RsaKey] = {}
        self._token_creators = {TRAINER: {TRAINER, USER, VM_ACCOUNT, WORKLOAD}}

    def __getitem__(self, name: str) -> Account:
        """Return an account, or raise KeyError."""
        return self._accounts[name]

    def service_account(self, email: str) -> Account:
        """Return a service account, creating it if it does not exist."""
        return self._accounts.setdefault(email, Account(email, "service_account"))

    def key_of(self, account: Account) -> RsaKey:
        """Return an account's key, generated on first use because that is slow.

        A workload's key is that of its identity provider.
        """
        with self._lock:
            if account.name not in self._keys:
                self._keys[account.name] = RsaKey(account.name)
            return self._keys[account.name]

    def delete_key(self, email: str) -> None:
        """Delete the key of a service account; its next use generates a new one."""
        self._keys.pop(email, None)

    def owner_of_key(self, key_id: object) -> tuple[Account, RsaKey] | None:
        """Return the service account that has the key with this id, and the key."""
        for name, key in list(self._keys.items()):
            if key.id == key_id:
                return self._accounts[name], key
        return None

    def grant(self, name: str, *, to: str) -> None:
        """Give `name` the Token Creator role on the service account `to`."""
        self._token_creators.setdefault(to, set()).add(name)

    def deny(self, name: str, *, on: str) -> None:
        """Revoke `name`'s Token Creator role on the service account `on`."""
        self._token_creators.setdefault(on, set()).discard(name)

    def may_impersonate(self, name: str, target: str) -> bool:
        return name in self._token_creators.get(target, ())
