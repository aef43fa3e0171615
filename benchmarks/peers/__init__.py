"""Probes that run the same training with every tracker's LightGBM integration."""
