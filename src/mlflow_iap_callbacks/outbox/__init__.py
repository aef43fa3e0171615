"""What is logged and not yet delivered: one journal on disk for each process and server."""

from .outbox import Outbox, QueuedRun, Record, Refusal

__all__ = ["Outbox", "QueuedRun", "Record", "Refusal"]
