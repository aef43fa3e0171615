"""Measure what this package costs beside other ways to log, and write the documentation's figures.

    python benchmarks/compare.py                        # results.md beside this file, and docs/
    python benchmarks/compare.py --only sweeps,calls    # keeps the other parts
    python benchmarks/compare.py --quick                # a check with small sizes; writes nothing

Each part is measured in one run, and written as soon as it is complete. Exits with 1 if something
that was reported as delivered is missing.
"""

from __future__ import annotations

import autologging
import call_time
import callbacks
import step_cost
import sweep_limit
from part import arguments, effort_of, run

_PARTS = {
    module.PART.name: module.PART
    for module in (call_time, step_cost, callbacks, autologging, sweep_limit)
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", metavar="PARTS", help=f"some of {','.join(_PARTS)}")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(_PARTS)
    if unknown := set(names) - set(_PARTS):
        parser.error(f"no such parts: {', '.join(unknown)}")
    run([_PARTS[name] for name in names], effort_of(given), is_written=not given.quick)


if __name__ == "__main__":
    main()
