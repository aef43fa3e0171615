"""Limits of MLflow's REST API: https://mlflow.org/docs/latest/rest-api.html#log-batch"""

from __future__ import annotations

MAX_KEY_LENGTH = 250  # characters, of a metric's, param's or tag's key
MAX_PARAM_LENGTH = 6000  # characters, of a value
MAX_TAG_LENGTH = 8000  # characters, of a value
MAX_EXPERIMENT_TAG_LENGTH = 5000  # characters, of a value
MAX_EXPERIMENT_NAME_LENGTH = 500  # characters
# For one log_batch request.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_TAGS = 100
MAX_ENTITIES = 1000
MAX_BYTES = 1_000_000
MAX_INTEGER = (1 << 63) - 1  # a step, or milliseconds since 1970
MAX_INPUT_TAG_LENGTH = 500  # characters, of a data set's tag
# Characters of a data set's fields.
MAX_DATASET_LENGTHS = {
    "name": 500,
    "digest": 36,
    "source_type": 36,
    "source": 65_535,
    "schema": 1_048_575,
    "profile": 16_777_215,
}
MAX_MODEL_PARAMS = 100  # of one request that creates a logged model
