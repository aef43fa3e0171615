"""Who exists in the local Google Cloud, and who may act as whom."""

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
# A client that Google manages belongs to a project of Google's: its number is not ours.
MANAGED_CLIENT_ID = "369001918367-managed.apps.googleusercontent.com"
GCLOUD_CLIENT_ID = "764086051850-6qr4p6gpi6hn506pt8ejuq83di341hur.apps.googleusercontent.com"


@dataclass(frozen=True)
class Account:
    """A user, a service account or a federated workload.

    Attributes:
        name: its e-mail; for a federated workload, which has none, its `principal://` name.
        kind: what it is.
    """

    name: str
    kind: Literal["user", "service_account", "workload"]

    @property
    def id(self) -> str:
        """The 21 digits by which Google knows it."""
        digits = int(hashlib.sha256(self.name.encode()).hexdigest(), 16)
        return f"1{digits:020d}"[:21]


class Accounts:
    """All accounts, the keys of the service accounts, and the Token Creator roles."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
        """Return a service account, created where it does not exist yet."""
        with self._lock:
            return self._accounts.setdefault(email, Account(email, "service_account"))

    def key_of(self, account: Account) -> RsaKey:
        """Return the key of a service account, made at first use: making one is slow."""
        with self._lock:
            if account.name not in self._keys:
                self._keys[account.name] = RsaKey(account.name)
            return self._keys[account.name]

    def delete_key(self, email: str) -> None:
        """Forget the key of a service account; the next use makes another."""
        with self._lock:
            self._keys.pop(email, None)

    def owner_of_key(self, key_id: object) -> tuple[Account, RsaKey] | None:
        """Return the service account that holds the key of this id."""
        with self._lock:
            for name, key in self._keys.items():
                if key.id == key_id:
                    return self._accounts[name], key
        return None

    def grant(self, name: str, *, to: str) -> None:
        """Let `name` act as the service account `to` (roles/iam.serviceAccountTokenCreator)."""
        with self._lock:
            self._token_creators.setdefault(to, set()).add(name)

    def deny(self, name: str, *, on: str) -> None:
        """Take from `name` the right to act as the service account `on`."""
        with self._lock:
            self._token_creators.setdefault(on, set()).discard(name)

    def may_act_as(self, name: str, target: str) -> bool:
        with self._lock:
            return name in self._token_creators.get(target, ())
