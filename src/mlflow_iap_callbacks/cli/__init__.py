"""The command ``mlflow-iap``."""
