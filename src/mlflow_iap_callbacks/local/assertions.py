"""What Identity-Aware Proxy tells the application about a caller, signed."""

from __future__ import annotations

from typing import Any

from .accounts import PROJECT_ID, PROJECT_NUMBER, Account
from .state import CloudState

AUDIENCE = f"/projects/{PROJECT_NUMBER}/apps/{PROJECT_ID}"
LIFETIME = 600  # seconds


class Assertions:
    """Signs assertions by the first of `CloudState.assertion_keys`."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    def sign(self, account: Account, **claims: Any) -> str:
        """Return an assertion about `account`.

        Args:
            account: who calls.
            **claims: replace those that it would have; None takes one away.
        """
        now = int(self._state.now())
        all_claims = {
            "aud": AUDIENCE,
            "azp": AUDIENCE,
            "email": account.name,
            "exp": now + LIFETIME,
            "iat": now,
            "identity_source": "GOOGLE",
            "iss": "https://cloud.google.com/iap",
            "sub": f"accounts.google.com:{account.id}",
            **claims,
        }
        return self._state.assertion_keys[0].sign(
            {name: value for name, value in all_claims.items() if value is not None}
        )
