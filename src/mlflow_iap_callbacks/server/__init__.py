"""The server's side: MLflow behind IAP, started, migrated and guarded."""
