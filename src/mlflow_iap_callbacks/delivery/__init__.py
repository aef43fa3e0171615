"""The way of a record from the outbox to MLflow, in the background."""
