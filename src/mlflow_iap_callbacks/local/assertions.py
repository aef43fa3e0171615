"""The assertion with which Identity-Aware Proxy tells the application who sent a request."""

from __future__ import annotations

from typing import Any

from .accounts import PROJECT_ID, PROJECT_NUMBER, Account
from .state import CloudState

AUDIENCE = f"/projects/{PROJECT_NUMBER}/apps/{PROJECT_ID}"
_LIFETIME = 600  # seconds, as for real ones


def sign_assertion(state: CloudState, account: Account, **claims: Any) -> str:
    """Return an assertion about `account`, signed with the first of `state.assertion_keys`.

    Args:
        state: the cloud.
        account: the sender.
        **claims: override the usual claims; None removes one.
    """
    now = int(state.now())
    all_claims = {
        "aud": AUDIENCE,
        "azp": AUDIENCE,
        "email": account.name,
        "exp": now + _LIFETIME,
        "iat": now,
        "identity_source": "GOOGLE",
        "iss": "https://cloud.google.com/iap",
        "sub": f"accounts.google.com:{account.id}",
        **claims,
    }
    return state.assertion_keys[0].sign(
        {name: value for name, value in all_claims.items() if value is not None}
    )
