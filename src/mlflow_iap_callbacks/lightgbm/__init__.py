"""The LightGBM callback: logs each call of LightGBM as a run."""
