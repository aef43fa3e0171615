"""Delivery of records from the outbox to MLflow, in the background."""
