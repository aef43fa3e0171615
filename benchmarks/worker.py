"""The process of a contender: warms up, trains, delivers; waits for its parent before each step.

    python worker.py CASE CONTENDER EXPERIMENT SIZE

Writes a line when it is ready, one when it has trained, and one of JSON at the end.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cases import CASES


def main() -> None:
    # The parent must not read what libraries print.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    case, name, experiment, size = sys.argv[1:]

    def wait_for_parent() -> None:
        channel.write("\n")
        sys.stdin.readline()

    contender = CASES[case][name](experiment)
    contender.warm_up()
    contender.deliver()
    contender.events.clear()
    wait_for_parent()
    began = time.time()
    train, train_cpu = _timed(lambda: contender.run(int(size)))
    wait_for_parent()
    deliver, deliver_cpu = _timed(contender.deliver)
    result = {
        "began": began,
        "train": train,
        "deliver": deliver,
        "cpu": train_cpu + deliver_cpu,
        "peak_mb": _peak_mb(),
        "events": contender.events,
    }
    channel.write(json.dumps(result) + "\n")
    sys.stdin.readline()


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds, and the processor time of all threads, that `work` takes."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


def _peak_mb() -> float:
    # On Linux, ru_maxrss starts with what the parent had when it started this process.
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
