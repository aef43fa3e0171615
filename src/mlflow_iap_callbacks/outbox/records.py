"""Records, refusals, and the state of runs, as a journal contains them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

import msgpack

POINTS = ("metrics", "curve")  # kinds of records whose content has points as its third part
# The kind of a message with metrics of one step: the step, its time in milliseconds, the names as
# one text, and the values as bytes. If the names are known from the step before, this takes half as
# long to pack as a dict.
ROW = "row"
_BETWEEN_NAMES = "\n"
BYTES_OF_DOUBLE = 8


def packed(value: object) -> bytes:
    """Return plain data as MessagePack bytes."""
    return bytes(msgpack.packb(value))


def unpacked(data: bytes) -> Any:
    """Return the plain data that MessagePack bytes contain."""
    return msgpack.unpackb(data)


def joined_names(names: Collection[str]) -> str | None:
    """Return names as one text for a row; None if they cannot be separated again."""
    text = _BETWEEN_NAMES.join(names)
    return text if text.count(_BETWEEN_NAMES) == len(names) - 1 else None


@lru_cache(maxsize=256)
def doubles(count: int) -> Struct:
    """Return the form of the values of a row."""
    return Struct(f"<{count}d")


@lru_cache(maxsize=256)
def _separated(names: str) -> Sequence[str]:
    return names.split(_BETWEEN_NAMES)


def record_kind(kind: str) -> str:
    """Return the kind of the record that is read from a message of this kind."""
    return "metrics" if kind == ROW else kind


def length(kind: str, content: Any) -> int:
    """Return the number of points, params or tags in a record."""
    if kind == ROW:
        return len(content[3]) // BYTES_OF_DOUBLE
    return len(content[2] if kind in POINTS else content)


def kind_and_content(payload: bytes) -> tuple[str, Any]:
    """Return the kind and content of the record that a message of the intake contains."""
    _, kind, content = unpacked(payload)
    if kind == ROW:
        step, time_ms, joined, values = content
        names = _separated(joined)
        pairs = zip(names, doubles(len(names)).unpack(values), strict=True)
        return record_kind(kind), [step, time_ms, dict(pairs)]
    # In these, values may be numbers: it takes less time to append them than their texts.
    if kind == "start":
        content["tags"] = _texts(content.get("tags", {}))
    elif kind == "suggestions":
        content = _texts(content)
    return kind, content


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


class Record(NamedTuple):
    """One operation on a run.

    Args:
        seq: sequence number in the journal.
        kind: ``start``, ``metrics``, ``curve``, ``points``, ``params``, ``suggestions``, ``tags``,
            ``artifact``, ``model``, ``model_start``, ``model_files``, ``model_metrics``, ``input``,
            ``request``, ``reopen``, ``update``, ``finish``, ``abandon`` or ``aside``.
        content: what the operation needs.
        size: bytes on disk.
    """

    seq: int
    kind: str
    content: Any
    size: int

    @classmethod
    def from_message(cls, seq: int, payload: bytes) -> Record:
        """Return the record that a message of the intake contains."""
        kind, content = kind_and_content(payload)
        return cls(seq, kind, content, len(payload))

    @property
    def has_files(self) -> bool:
        """Whether it has files. The outbox may have copies of them."""
        return self.kind in ("artifact", "model", "model_files")


class Refusal(NamedTuple):
    """A record, or a part of a record, that MLflow permanently rejects.

    Args:
        kind: kind of the record.
        content: content of the record, or a part of it.
        reason: MLflow's message.
    """

    kind: str
    content: Any
    reason: str


@dataclass(eq=False)
class RunState:
    """The state of a run, as a journal stores it.

    Args:
        key: run key, which is also a tag of the run in MLflow.
        experiment: its experiment, as ``name:NAME`` or ``id:ID``.
        is_owned: whether this journal's process started the run, and so has to end it.
        is_ended: whether the record of its end was appended.
        run_id: MLflow's id of the run, once known.
        tried: when its creation was requested, in seconds since 1970, if the outcome is unknown.
        refused: why MLflow permanently rejects the run; None if it does not.
        trouble: why its last delivery failed, if it did.
        skipped: number of points that were not logged because they are NaN.
        settled: sequence number of its last settled record.
        saves: how often this state was stored.
    """

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

    def packed_state(self) -> bytes:
        """Return these values as bytes, for ``RunState(*unpacked(data))``."""
        return packed([getattr(self, field.name) for field in fields(RunState)])


def begun_by(kind: str, content: Any) -> RunState:
    """Return the state of a run whose first message this is."""
    run_id = content.get("run_id")
    return RunState(content["key"], content["experiment"], kind == "start", run_id=run_id)
