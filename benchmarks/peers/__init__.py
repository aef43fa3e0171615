"""Probes that run every tracker's LightGBM integration through the same trainings."""
