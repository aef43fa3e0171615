"""Tags and attributes that this package sets, and what they mean."""

from __future__ import annotations

# MLflow's pages hide names that begin with `_mlflow_` or `mlflow.`. This package's tags for its own
# use have the first prefix, because MLflow reserves the second one for itself. Tags that people or
# their scripts read begin with `mlflow_iap.`, and so does the run key, because runs of earlier
# versions are found by it.

# The key by which a run is looked up, so that it is never created twice.
RUN_KEY_TAG = "mlflow_iap.run_key"
# On a run that was requested twice: the first response was lost, and no run was found.
ASKED_TWICE_TAG = "_mlflow_iap.asked_twice"
# The journal that writes to the run now.
JOURNAL_TAG = "_mlflow_iap.journal"
# On a run that was created again after the server lost it: what is missing in it.
AGAIN_TAG = "mlflow_iap.created_again"
# Why a run was not ended by its own process.
ENDED_TAG = "mlflow_iap.ended"
# On the run that all processes agreed to share, if several created one.
AGREED_TAG = "_mlflow_iap.agreed"
# The number of points left out because they are NaN.
SKIPPED_TAG = "mlflow_iap.skipped_nan_points"
# Prefix of the name that MLflow stores; the value is the original name, which it rejects.
NAME_TAG = "mlflow_iap.name"
# The key by which a logged model is looked up.
MODEL_KEY_TAG = "mlflow_iap.model_key"
# The Optuna study and trial of a run, and the trial's state when it was logged.
STUDY_TAG = "mlflow_iap.study"
TRIAL_TAG = "mlflow_iap.trial"
STATE_TAG = "_mlflow_iap.trial_state"
FORMER_STATE_TAG = "mlflow_iap.trial_state"  # of earlier versions
# A system attribute of a study in memory that distinguishes it from others with the same name.
STUDY_MARK = "mlflow_iap:mark"
# The user name that a client sent. The server sets the run's user to the verified one.
CLAIM_TAG = "mlflow_iap.claimed_user"
# The user who started a trace of which another user had already sent spans, and who may end it.
STARTER_TAG = "mlflow_iap.started_by"
# MLflow's own tags. Its pages show an experiment of this kind as *Model training*, not *GenAI*.
EXPERIMENT_KIND_TAG = "mlflow.experimentKind"
TRAINING_KIND = "custom_model_development"
# Prefix of an experiment's tag with a view of its runs, which a link can open.
VIEW_TAG = "mlflow.sharedViewState"
DESCRIPTION_TAG = "mlflow.note.content"
