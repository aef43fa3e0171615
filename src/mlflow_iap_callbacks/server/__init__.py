"""The MLflow server behind Identity-Aware Proxy: it admits whom Google has authenticated."""
