"""Records of a journal, those that MLflow refused, and the runs that they belong to."""

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
        content: what the operation needs.
        size: bytes on disk.
    """

    seq: int
    kind: str
    content: Any
    size: int

    @classmethod
    def from_message(cls, seq: int, payload: bytes) -> Record:
        """Return the record that a message of the intake holds."""
        _, kind, content = unpacked(payload)
        return cls(seq, kind, content, len(payload))

    @property
    def has_files(self) -> bool:
        """Whether it has files, of which the outbox may have a copy."""
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


class RunState(NamedTuple):
    """What a journal keeps of a run; see ``QueuedRun``."""

    key: str
    experiment: str
    is_owned: bool
    is_ended: bool = False
    run_id: str | None = None
    tried: float | None = None
    refused: str | None = None
    trouble: str | None = None
    skipped: int = 0
    settled: int = 0
    saves: int = 0

    @classmethod
    def begun_by(cls, kind: str, content: Any) -> RunState:
        """Return the state of a run that began with this message."""
        run_id = content.get("run_id")
        return cls(content["key"], content["experiment"], kind == "start", run_id=run_id)
