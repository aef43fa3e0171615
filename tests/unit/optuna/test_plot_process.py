"""The process that draws, seen from the sweep; the plots themselves are in the end-to-end tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import create_trial

from mlflow_iap_callbacks.optuna import plots
from mlflow_iap_callbacks.optuna.packed_study import packed
from mlflow_iap_callbacks.optuna.plot_process import OutOfTime, PlotProcess
from optuna_helpers import new_study


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Replaces Python with a shell script."""

    def replace(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace


# Reads the path of a packed study, and makes the folder for its files.
_BEGIN = 'read given && folder="${given%.json}" && mkdir "$folder"'


def test_files_are_yielded_as_soon_as_they_are_written_and_missing_ones_are_named_last(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    python(
        f'{_BEGIN}; echo 1 > "$folder/.half"; echo 1 > "$folder/b.png"\n'
        f"until test -e {go_on}; do sleep 0.01; done\n"
        'echo 1 > "$folder/a.png"; echo \'["no c.png"]\' > "$folder/end.json"; read end'
    )
    with PlotProcess() as process:
        found = process.draw(new_study(), ["value"], lambda: 60.0)
        first = next(found)
        go_on.touch()
        rest = list(found)
    assert [getattr(each, "name", each) for each in (first, *rest)] == [
        "b.png",
        "a.png",
        "no c.png",
    ]


def test_a_process_that_fails_is_reported_with_its_last_line_and_the_next_study_gets_a_new_one(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python(
        f'echo begun >> {tmp_path}/begun; {_BEGIN}; echo 1 > "$folder/a.csv"\n'
        "echo first >&2; echo no such thing >&2; exit 1"
    )
    with PlotProcess() as process:
        for _ in range(2):
            found = process.draw(new_study(), ["value"], lambda: 60.0)
            assert getattr(next(found), "name", None) == "a.csv"
            assert list(found) == ["no more could be drawn: no such thing"]
    assert (tmp_path / "begun").read_text() == "begun\nbegun\n"


def test_a_process_that_cannot_be_started_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with PlotProcess() as process:
        (problem,) = process.draw(new_study(), ["value"], lambda: 60.0)
    assert str(problem).startswith("nothing could be drawn: ")


def test_one_process_draws_several_studies(python: Callable[[str], None], tmp_path: Path) -> None:
    python(
        f"echo begun >> {tmp_path}/begun\n"
        f'while {_BEGIN}; do cp "$given" "$folder/given"; echo "[]" > "$folder/end.json"; done'
    )
    studies = [new_study(), new_study()]
    studies[1].add_trial(create_trial(value=1.0, user_attrs={"long": "a" * 1_000_000}))
    with PlotProcess() as process:
        files = [path for study in studies for path in process.draw(study, ["value"], lambda: 60.0)]
        given = [path.read_bytes() for path in files if isinstance(path, Path)]
    assert given == [packed(study, ["value"]) for study in studies]
    assert (tmp_path / "begun").read_text() == "begun\n"


def test_what_is_written_when_no_time_is_left_is_yielded_and_the_process_is_killed(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    python(f'{_BEGIN}; echo 1 > "$folder/a.csv"; echo $$ > {pid}; exec sleep 600')
    with PlotProcess() as process:
        found = process.draw(new_study(), ["value"], lambda: 0.0 if pid.exists() else 60.0)
        assert getattr(next(found), "name", None) == "a.csv"
        with pytest.raises(OutOfTime):
            next(found)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_no_process_is_started_if_nothing_is_drawn(
    python: Callable[[str], None], tmp_path: Path
) -> None:
    python(f"echo begun >> {tmp_path}/begun")
    with PlotProcess():
        pass
    assert not (tmp_path / "begun").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Signals cannot be blocked.")
def test_a_signal_ends_it_although_the_thread_that_starts_it_blocks_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        process = subprocess.Popen([sys.executable, "-m", plots.__name__], stdin=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process:
        process.terminate()
        try:
            assert process.wait(30) == -signal.SIGTERM
        finally:
            process.kill()
