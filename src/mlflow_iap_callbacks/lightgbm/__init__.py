"""The LightGBM callback: a run for each training."""
