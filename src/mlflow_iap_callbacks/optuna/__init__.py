"""The Optuna callback: a run for each trial, and one for their study."""
