"""What is logged and not yet delivered: a journal on disk for each process and server."""

from .outbox import Outbox, QueuedRun
from .records import Record, Refusal

__all__ = ["Outbox", "QueuedRun", "Record", "Refusal"]
