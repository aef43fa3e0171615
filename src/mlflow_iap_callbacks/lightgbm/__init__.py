"""The LightGBM callback: logs each training as a run."""
