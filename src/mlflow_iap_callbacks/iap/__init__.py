"""Requests through Identity-Aware Proxy: client, authentication, tokens and retries."""
