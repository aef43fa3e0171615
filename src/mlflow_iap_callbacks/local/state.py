"""What the servers of the local Google Cloud share, and what a test may change while they run."""

from __future__ import annotations

import time

from .accounts import (
    TRAINER,
    USER,
    VM_ACCOUNT,
    Accounts,
)
from .faults import Faults
from .keys import EcKey
from .request_log import IssuedToken, SeenRequest
from .tokens import Mint


class CloudState:
    """The settings, the accounts and the record of one local Google Cloud.

    Attributes:
        token_lifetime: how long a token holds, in seconds; for a JWT that a service account signs
            itself this is counted from its `iat`, and its own `exp` counts too.
        client_id: the OAuth client that Identity-Aware Proxy accepts as audience of ID tokens;
            None for the client that Google manages, which no ID token may name.
        programmatic_clients: further client ids that it accepts.
        members: e-mails that hold roles/iap.httpsResourceAccessor, looked up on each request.
        delay: seconds added to each request at Identity-Aware Proxy.
        clock_offset: seconds by which Google's clock is ahead of this machine's.
        trainer: e-mail of a service account that is there from the start.
        vm_account: e-mail of the service account of the virtual machine.
        user: e-mail of a person.
        secrets: texts in Secret Manager, by `projects/PROJECT/secrets/NAME`; one version each.
        secret_readers: e-mails that hold roles/secretmanager.secretAccessor on all of them.
        assertion_keys: the first one signs assertions, all are published; another cloud's, so that
            an application which checks that one's assertions takes this one's.
        requests: what Identity-Aware Proxy saw, oldest first.
        google_requests: what the other endpoints saw, oldest first.
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
        """The tokens that the Google endpoints gave out, oldest first."""
        return self.mint.issued

    @property
    def accepted_clients(self) -> set[str]:
        """The client ids that Identity-Aware Proxy takes as audience of an ID token."""
        return self.programmatic_clients | ({self.client_id} if self.client_id else set())

    def now(self) -> float:
        """Return Google's time, in seconds since the epoch."""
        return time.time() + self.clock_offset
