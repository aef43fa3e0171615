#!/bin/sh
# With exec, because a shell would not pass SIGTERM on, and the server would be killed 30 s later.
set -eu
exec python -m mlflow_iap_callbacks.server "$@"
