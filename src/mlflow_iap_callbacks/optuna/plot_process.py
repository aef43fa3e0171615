"""A separate process that writes a study's files and draws its plots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from .packed_study import packed

if TYPE_CHECKING:
    import optuna

_SECONDS_BETWEEN_LOOKS = 0.1
_DRAWN_BY = "mlflow_iap_callbacks.optuna.plots"
# Written last, with what could not be drawn.
END = "end.json"


class OutOfTime(Exception):
    """Not everything could be drawn in the time that was left."""


class PlotProcess:
    """A process that draws one study after the other. Leaving its context kills it.

    So the sweep never waits for a plotting library, and the user's plot settings do not change.
    Most of the process's time is spent on importing libraries, so one serves several studies.
    """

    def __enter__(self) -> PlotProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-iap-plots-")
        self._errors = Path(self._folder.name) / "errors"
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def draw(
        self,
        study: optuna.Study,
        names: Sequence[str],
        time_left: Callable[[], float],
        *,
        is_quick: bool = False,
    ) -> Iterator[Path | str]:
        """Yield each file as soon as it is written, then a sentence for each that could not be.

        The files are the table of trials, the study, and the plots that the trials and the
        installed libraries allow. They exist until the context is left.

        Args:
            study: the study.
            names: names of its objective values.
            time_left: returns the seconds that are left; called repeatedly.
            is_quick: whether to draw only the plots that take little time.

        Raises:
            OutOfTime: no time is left.
        """
        self._begun += 1
        given = Path(self._folder.name) / f"{self._begun}{'-quick' if is_quick else ''}.json"
        content = packed(study, names)
        try:
            given.write_bytes(content)
            process = self._started()
            stdin = cast("IO[bytes]", process.stdin)
            stdin.write(f"{given}\n".encode())
            stdin.flush()
        except OSError as error:  # of this process or the disk, and not of the study's storage
            yield f"nothing could be drawn: {error}"
            return
        end = given.with_suffix("") / END
        seen = {end}
        while True:
            is_over = end.exists()
            has_died = not is_over and process.poll() is not None
            for path in sorted(given.with_suffix("").glob("[!.]*")):
                if path not in seen:
                    seen.add(path)
                    yield path
            if is_over:
                yield from json.loads(end.read_bytes())
                return
            if has_died:
                errors = self._errors.read_text(encoding="utf-8", errors="replace").splitlines()
                why = errors[-1] if errors else "the process was killed"
                yield f"no more could be drawn: {why}"
                return
            if time_left() <= 0:
                raise OutOfTime
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_BETWEEN_LOOKS)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(  # noqa: S603 - a module of this package
                    [sys.executable, "-m", _DRAWN_BY],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**os.environ, "MPLBACKEND": "Agg"},
                )
        return self._process
