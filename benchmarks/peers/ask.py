"""The process of a probe: runs it with a peer, and prints a line of JSON.

python -m peers.ask PEER PROBE
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

from . import content_probes, curve_probes, end_probes  # noqa: F401 - they register
from .rows import PROBES, Answers

ADAPTERS = {
    "ours": ("ours", "Ours"),
    "mlflow": ("autolog", "Autolog"),
    "wandb": ("wandb_peer", "Wandb"),
    "neptune": ("neptune_peer", "Neptune"),
    "neptune-old": ("neptune_peer", "Neptune"),
    "swanlab": ("swanlab_peer", "SwanLab"),
    "dvclive": ("dvclive_peer", "DVCLive"),
}


def main() -> None:
    # The parent must not read what libraries print.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    name, probe_name = sys.argv[1:]
    probe = PROBES[probe_name]
    answers = Answers({}, {})
    error_name = "no answer"
    try:
        module, kind = ADAPTERS[name]
        adapter = getattr(importlib.import_module(f"peers.{module}"), kind)
    except Exception as error:  # noqa: BLE001 - an integration that does not import
        answers.seen["import"] = str(error)
        error_name = type(error).__name__
    else:
        try:
            probe.ask(adapter(Path.cwd()), answers)
        except Exception as error:
            if _is_ours(error):
                raise
            error_name = type(error).__name__
            answers.seen["raised"] = traceback.format_exc()[-1500:]
    for row in probe.rows:
        answers.cells.setdefault(row, f"fails: {error_name}")
    channel.write(json.dumps({"cells": answers.cells, "seen": answers.seen}) + "\n")
    channel.flush()
    # Do not wait for what a library does at exit.
    os._exit(0)


def _is_ours(error: Exception) -> bool:
    """Whether the error is in the probe itself, not in what it calls."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return where.parent == Path(__file__).parent


if __name__ == "__main__":
    main()
