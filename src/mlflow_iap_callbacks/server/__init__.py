"""The MLflow server behind Identity-Aware Proxy, for users that Google has authenticated."""
