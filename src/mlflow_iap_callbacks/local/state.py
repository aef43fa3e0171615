"""The state that the servers of the local Google Cloud share, and that tests may change."""

from __future__ import annotations

import time

from .accounts import TRAINER, USER, VM_ACCOUNT, Accounts
from .faults import Faults
from .keys import EcKey
from .request_log import IssuedToken, SeenRequest
from .tokens import Mint


class CloudState:
    """The settings, the accounts and the request log of a local Google Cloud.

    Attributes:
        token_lifetime: how long a token is valid, in seconds. A JWT that a service account signs
            itself expires this long after its `iat`, or at its own `exp` if that is earlier.
        client_id: the OAuth client that Identity-Aware Proxy accepts as audience of ID tokens;
            None for the Google-managed client, for which it accepts no ID tokens.
        programmatic_clients: other client ids that it accepts as audience.
        members: e-mails with roles/iap.httpsResourceAccessor, looked up on each request.
        delay: seconds that Identity-Aware Proxy waits before it handles a request.
        clock_offset: seconds that Google's clock is ahead of this machine's.
        trainer: e-mail of a service account that exists from the start.
        vm_account: e-mail of the virtual machine's service account.
        user: e-mail of a person.
        secrets: texts in Secret Manager, by `projects/PROJECT/secrets/NAME`; one version each.
        secret_readers: e-mails with roles/secretmanager.secretAccessor on all of them.
        assertion_keys: keys of Identity-Aware Proxy: all are published, and the first one signs
            assertions. If you set it to another cloud's keys, applications that verify that cloud's
            assertions also accept this one's.
        requests: the requests to Identity-Aware Proxy, oldest first.
        google_requests: the requests to Google's other endpoints, oldest first.
    """

    trainer = TRAINER
    vm_account = VM_ACCOUNT
    user = USER

    def __init__(self, *, token_lifetime: float, client_id: str | None) -> None:
        self.token_lifetime = token_lifetime
        self.client_id = client_id
        self.programmatic_clients: set[str] = set()
        self.members = {TRAINER, VM_ACCOUNT, USER}
        self.secrets: dict[str, str] = {}
        self.secret_readers = {TRAINER, VM_ACCOUNT}
        self.assertion_keys = [EcKey()]
        self.delay = 0.0
        self.clock_offset = 0.0
        self.requests: list[SeenRequest] = []
        self.google_requests: list[SeenRequest] = []
        self.accounts = Accounts()
        self.mint = Mint(self.accounts, self.now, lambda: self.token_lifetime)
        self.faults = Faults()

    @property
    def tokens(self) -> list[IssuedToken]:
        """The tokens that the Google endpoints issued, oldest first."""
        return self.mint.issued

    @property
    def accepted_clients(self) -> set[str]:
        """The client ids that Identity-Aware Proxy accepts as audience of an ID token."""
        return self.programmatic_clients | ({self.client_id} if self.client_id else set())

    def now(self) -> float:
        """Return the time by Google's clock, in seconds since the epoch."""
        return time.time() + self.clock_offset
