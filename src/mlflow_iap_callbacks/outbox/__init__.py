"""Records that are not delivered yet, in one journal on disk per process and server."""

from .outbox import Outbox, QueuedRun
from .records import Record, Refusal

__all__ = ["Outbox", "QueuedRun", "Record", "Refusal"]
