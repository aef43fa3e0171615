"""The cases and their contenders, in the order in which they are run."""

from __future__ import annotations

import sweeps
import throughput
import trainings

CASES = {
    "Optuna": sweeps.CONTENDERS,
    "8 at once": sweeps.AT_ONCE,
    "long": sweeps.LONG,
    "LightGBM": trainings.CONTENDERS,
    "1,000 rounds": trainings.LONG,
    "10,000 rounds": trainings.LONG,
    "Optuna, pairs": sweeps.PAIRED,
    "LightGBM, pairs": trainings.PAIRED,
    "10,000 rounds, pairs": trainings.LONG_PAIRED,
    "throughput": throughput.CONTENDERS,
}
