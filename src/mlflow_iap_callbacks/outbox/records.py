"""Records of a journal, and what MLflow refused of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack


class Record(NamedTuple):
    """One operation on a run.

    Args:
        seq: its place in the order of the journal.
        kind: ``start``, ``metrics``, ``curve``, ``params``, ``suggestions``, ``tags``,
            ``artifact``, ``model``, ``input``, ``reopen``, ``finish`` or ``abandon``.
        body: MessagePack.
    """

    seq: int
    kind: str
    body: bytes

    @property
    def content(self) -> Any:
        """What the body says."""
        return msgpack.unpackb(self.body)

    @property
    def has_files(self) -> bool:
        """Whether files belong to it, which the outbox may have copied."""
        return self.kind in ("artifact", "model")


class Refusal(NamedTuple):
    """What MLflow refuses for good: a record, or a part of one.

    Args:
        kind: as the record's.
        content: what the record's body says.
        reason: in MLflow's words.
    """

    kind: str
    content: Any
    reason: str
