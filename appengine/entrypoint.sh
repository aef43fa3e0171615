#!/bin/sh
# A shell that stays would not pass SIGTERM on: the server would be killed 30 s later.
set -eu
exec python -m mlflow_iap_callbacks.server "$@"
