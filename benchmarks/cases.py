"""The cases and their contenders, in the order in which they are run."""

from __future__ import annotations

import autologs
import plain_clients
import sweeps
import throughput
import trainings

LONGEST = "10,000 rounds"
SWEEP_LIMIT = "sweep limit"


def in_pairs(case: str) -> str:
    """Return the name of a case whose contenders alternate in one process."""
    return f"{case}, pairs"


def autologged(library: str) -> str:
    """Return the name of a case with a library's autologging."""
    return f"autologging, {library}"


CASES = {
    "Optuna": sweeps.CONTENDERS,
    "8 at once": sweeps.AT_ONCE,
    "long": sweeps.LONG,
    "LightGBM": trainings.CONTENDERS,
    "1,000 rounds": trainings.LONG,
    LONGEST: trainings.LONG,
    in_pairs("Optuna"): sweeps.PAIRED,
    in_pairs("LightGBM"): trainings.PAIRED,
    in_pairs(LONGEST): trainings.LONG_PAIRED,
    "throughput": throughput.CONTENDERS,
    SWEEP_LIMIT: {**plain_clients.CONTENDERS, "ours": sweeps.LONG["ours"]},
    **{autologged(name): ways for name, ways in autologs.CONTENDERS.items()},
}
