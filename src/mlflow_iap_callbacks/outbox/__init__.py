"""Records that are not delivered yet, in a journal on disk for each process and server."""

from .outbox import Outbox, QueuedRun
from .records import Record, Refusal

__all__ = ["Outbox", "QueuedRun", "Record", "Refusal"]
