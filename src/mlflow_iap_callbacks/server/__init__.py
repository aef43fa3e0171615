"""The MLflow server behind Identity-Aware Proxy: it lets in whom Google vouches for."""
