-- Makes a database name its artifacts as this server does, after they were copied from {OLD_ROOT} to
-- MLFLOW_ARTIFACTS_DESTINATION. Works in MySQL and PostgreSQL.
UPDATE experiments SET artifact_location =
  CONCAT('mlflow-artifacts:', SUBSTR(artifact_location, CHAR_LENGTH('{OLD_ROOT}') + 1))
  WHERE LEFT(artifact_location, CHAR_LENGTH('{OLD_ROOT}/')) = '{OLD_ROOT}/';
UPDATE runs SET artifact_uri =
  CONCAT('mlflow-artifacts:', SUBSTR(artifact_uri, CHAR_LENGTH('{OLD_ROOT}') + 1))
  WHERE LEFT(artifact_uri, CHAR_LENGTH('{OLD_ROOT}/')) = '{OLD_ROOT}/';
UPDATE logged_models SET artifact_location =
  CONCAT('mlflow-artifacts:', SUBSTR(artifact_location, CHAR_LENGTH('{OLD_ROOT}') + 1))
  WHERE LEFT(artifact_location, CHAR_LENGTH('{OLD_ROOT}/')) = '{OLD_ROOT}/';
UPDATE model_versions SET source =
  CONCAT('mlflow-artifacts:', SUBSTR(source, CHAR_LENGTH('{OLD_ROOT}') + 1))
  WHERE LEFT(source, CHAR_LENGTH('{OLD_ROOT}/')) = '{OLD_ROOT}/';
UPDATE model_versions SET storage_location =
  CONCAT('mlflow-artifacts:', SUBSTR(storage_location, CHAR_LENGTH('{OLD_ROOT}') + 1))
  WHERE LEFT(storage_location, CHAR_LENGTH('{OLD_ROOT}/')) = '{OLD_ROOT}/';
UPDATE trace_tags SET value =
  CONCAT('mlflow-artifacts:', SUBSTR(value, CHAR_LENGTH('{OLD_ROOT}') + 1))
  WHERE LEFT(value, CHAR_LENGTH('{OLD_ROOT}/')) = '{OLD_ROOT}/';
