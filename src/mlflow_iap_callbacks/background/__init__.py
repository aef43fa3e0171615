"""Background logging for MLflow's own API: writes go to the outbox, and reads wait for them."""
