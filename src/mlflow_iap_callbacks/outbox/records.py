"""Records of a journal, and those that MLflow refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack


def packed(value: object) -> bytes:
    """Return plain data as bytes (MessagePack)."""
    return bytes(msgpack.packb(value))


def unpacked(data: bytes) -> Any:
    """Return the plain data that bytes hold."""
    return msgpack.unpackb(data)


class Record(NamedTuple):
    """One operation on a run.

    Args:
        seq: sequence number in the journal.
        kind: ``start``, ``metrics``, ``curve``, ``params``, ``suggestions``, ``tags``,
            ``artifact``, ``model``, ``input``, ``reopen``, ``finish``, ``abandon`` or ``aside``.
        body: content, as MessagePack.
    """

    seq: int
    kind: str
    body: bytes

    @property
    def content(self) -> Any:
        """The unpacked body."""
        return msgpack.unpackb(self.body)

    @property
    def has_files(self) -> bool:
        """Whether it has files, which the outbox may have copied."""
        return self.kind in ("artifact", "model")


class Refusal(NamedTuple):
    """A record, or a part of one, that MLflow permanently rejects.

    Args:
        kind: kind of the record.
        content: content of the record, or a part of it.
        reason: MLflow's message.
    """

    kind: str
    content: Any
    reason: str
