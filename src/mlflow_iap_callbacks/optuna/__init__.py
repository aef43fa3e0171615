"""The Optuna callback: logs each trial as a run, and the study as their parent run."""
