"""`python -m mlflow_iap_callbacks.server` with some settings changed, to measure their effect.

python changed_server.py --driver mysqldb --uvicorn="--access-log --loop asyncio" serve
"""

from __future__ import annotations

import argparse
import shlex

from mlflow_iap_callbacks.server import start
from mlflow_iap_callbacks.server.__main__ import main
from mlflow_iap_callbacks.server.mysql import MySQL

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver")
    parser.add_argument("--uvicorn", default="")
    parser.add_argument("--jobs", action="store_true")
    parser.add_argument("command")
    given = parser.parse_args()

    MySQL.driver = f"mysql+{given.driver}" if given.driver else MySQL.driver
    # uvicorn uses the last one of an option that is given twice.
    start._UVICORN += tuple(shlex.split(given.uvicorn))
    start._OFF["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = str(given.jobs).lower()
    main([given.command])
