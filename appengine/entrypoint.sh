#!/bin/sh
# exec, because a shell would not forward SIGTERM, and the server would be killed 30 s later.
set -eu
exec python -m mlflow_iap_callbacks.server "$@"
