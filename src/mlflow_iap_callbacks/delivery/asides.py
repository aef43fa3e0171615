"""Records that were set aside: the server fails on them, so their run does not wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..outbox import Record, Refusal

_KIND = "aside"
# Runs and models must be created first, and nothing must overtake a change of a run's status.
_KEPT_IN_ORDER = ("start", "model_start", "reopen", "update", "finish", "abandon")

Place = tuple[str, str]


def set_aside(part: Refusal, seq: int) -> tuple[str, Any]:
    """Return the kind and content of a new record for a part that is set aside.

    Args:
        part: the part.
        seq: sequence number of the record that the part comes from.
    """
    return _KIND, {"kind": part.kind, "content": part.content, "seq": seq}


def original(record: Record) -> Record:
    """Return the original of a record that was set aside; return any other record unchanged."""
    if record.kind != _KIND:
        return record
    content = record.content
    return Record(content["seq"], content["kind"], content["content"], record.size)


def is_divisible(record: Record) -> bool:
    """Return whether parts of the record may be set aside."""
    return record.kind != _KIND and record.kind not in _KEPT_IN_ORDER


def places(record: Record) -> set[Place]:
    """Return the files or tags that the record sets, which a newer record may set as well."""
    record = original(record)
    if record.kind == "artifact":
        return {(record.content["to"] or "", Path(record.content["path"]).name)}
    if record.kind == "tags":
        return {("tag", name) for name in record.content}
    return set()
