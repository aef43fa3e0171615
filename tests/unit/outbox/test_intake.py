"""Which messages are appended, and which of them remain when the process or the disk fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disk_helpers import JUNK, Disk, free_files, limit_files
from mlflow_iap_callbacks.outbox.intake import (
    Intake,
    Message,
    read_messages,
    read_server,
    unreadable_bytes,
)
from own_log import said_by_us
from waiting import wait_until

_APPEND_UNTIL_KILLED = """
import itertools, sys
from pathlib import Path
from mlflow_iap_callbacks.outbox.intake import Intake

intake = Intake(Path(sys.argv[1]))
for n in itertools.count():
    intake.append(n, "metrics", (n, 2 * n, {"m": n / 7}))
    print(n, flush=True)
"""


@pytest.fixture(params=Disk.KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with Disk.of_kind(request.param, tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intake keeps no more than three messages of the file in memory."""
    monkeypatch.setattr("mlflow_iap_callbacks.outbox.intake._MOST_FRESH_BYTES", 40)


def _file(stem: Path, generation: int = 0) -> Path:
    return Path(f"{stem}.{generation}.intake")


def _append(intake: Intake, numbers: range, text: str = "") -> None:
    for n in numbers:
        assert intake.append(n, "tags", {"text": text})


def _contents(messages: Iterable[Message]) -> list[tuple[int, str, Any]]:
    return [(message.number, message.kind, message.content) for message in messages]


def _all(intake: Intake) -> list[Message]:
    found: list[Message] = []
    while messages := intake.take() or intake.take_from_memory():
        found += messages
    return found


def _numbers(intake: Intake) -> list[int]:
    return [message.number for message in _all(intake)]


def _on_disk(stem: Path, generation: int = 0) -> list[int]:
    return [message.number for message in read_messages(_file(stem, generation), 0)]


# --- order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_on_disk", [True, False])
def test_messages_are_taken_once_and_in_order(stem: Path, is_on_disk: bool) -> None:
    intake = Intake(stem if is_on_disk else None)
    for n in range(10):
        assert intake.append(n, "metrics", (n, -n, {"ü": n / 7}))
    expected = [(n, "metrics", [n, -n, {"ü": n / 7}]) for n in range(10)]
    found = _all(intake)
    assert _contents(found) == expected
    assert [message.length for message in found] == [1] * 10
    assert _all(intake) == []
    assert intake.last_seq == 10


@pytest.mark.parametrize("sizes", [(30,), (1, 30, 1), (30, 1, 1), (2, 2, 2)])
def test_messages_for_which_memory_has_no_room_are_read_from_the_file(
    stem: Path, small_memory: None, sizes: tuple[int, ...]
) -> None:
    intake = Intake(stem)
    first = 0
    for size in sizes:
        _append(intake, range(first, first + size))
        assert _numbers(intake) == [*range(first, first + size)]
        first += size
    assert [message.seq for message in read_messages(_file(stem), 0)] == [*range(1, first + 1)]


@pytest.mark.parametrize("most_bytes", [40, 4_000, 4_000_000])
def test_the_messages_of_each_thread_stay_in_order(
    stem: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr("mlflow_iap_callbacks.outbox.intake._MOST_FRESH_BYTES", most_bytes)
    intake = Intake(stem)
    found: list[Message] = []
    is_over = threading.Event()

    def take() -> None:
        while not is_over.is_set():
            found.extend(intake.take())

    def append(thread: int) -> None:
        for n in range(1000):
            intake.append(thread, "metrics", (n, n, {"m": 0.5}))

    taker = threading.Thread(target=take)
    taker.start()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(append, range(8)))
    is_over.set()
    taker.join()
    found += _all(intake)
    for thread in range(8):
        steps = [message.content[0] for message in found if message.number == thread]
        assert steps == list(range(1000))


def test_each_file_begins_with_the_server(stem: Path) -> None:
    Intake(stem, server="http://server").append(1, "tags", {})
    Intake(stem, last_seq=1, server="http://server").append(2, "tags", {})
    messages = _contents(read_messages(_file(stem), 0))
    assert messages == [(1, "tags", {}), (2, "tags", {})]
    assert read_server(_file(stem)) == "http://server"


# --- groups ----------------------------------------------------------------------------------

_GROUP = [("start", {"key": "a", "tags": {"n": 1}}), ("metrics", (0, 5, {"m": 0.5})), ("tags", {})]
_GROUP_READ = [
    (7, "start", {"key": "a", "tags": {"n": 1}}),
    (7, "metrics", [0, 5, {"m": 0.5}]),
    (7, "tags", {}),
]


def _append_with_group(intake: Intake) -> None:
    """Append a message, a group of three, and a message."""
    _append(intake, range(1, 2))
    assert intake.append_all(7, _GROUP)
    _append(intake, range(2, 3))


@pytest.mark.parametrize("is_on_disk", [True, False])
def test_the_messages_of_a_group_are_taken_in_order_with_those_around_it(
    stem: Path, is_on_disk: bool
) -> None:
    intake = Intake(stem if is_on_disk else None)
    _append_with_group(intake)
    found = _all(intake)
    text = {"text": ""}
    assert _contents(found) == [(1, "tags", text), *_GROUP_READ, (2, "tags", text)]
    assert [(message.seq, message.length) for message in found[1:4]] == [(2, 2), (3, 1), (4, 0)]
    assert (_all(intake), intake.last_seq) == ([], 5)


def test_a_group_for_which_memory_has_no_room_is_read_from_the_file(
    stem: Path, small_memory: None
) -> None:
    intake = Intake(stem)
    _append_with_group(intake)
    assert _numbers(intake) == [1, 7, 7, 7, 2]
    _append_with_group(intake)
    assert _numbers(intake) == [1, 7, 7, 7, 2]


@pytest.mark.parametrize("after", range(6))
def test_the_rest_of_a_group_is_read_if_some_of_its_messages_are_settled(
    stem: Path, after: int
) -> None:
    _append_with_group(Intake(stem))
    found = [message.seq for message in read_messages(_file(stem), after)]
    assert found == [*range(after + 1, 6)]


def test_a_group_that_is_not_whole_is_not_read(stem: Path) -> None:
    intake = Intake(stem)
    _append(intake, range(3))
    before = _file(stem).stat().st_size
    intake.append_all(7, _GROUP)
    whole = _file(stem).read_bytes()
    for size in range(before, len(whole)):
        _file(stem).write_bytes(whole[:size])
        assert _on_disk(stem) == [0, 1, 2]
    _file(stem).write_bytes(whole)
    assert _on_disk(stem) == [0, 1, 2, 7, 7, 7]


def test_a_group_without_room_on_disk_waits_in_memory(disk: Disk) -> None:
    intake = Intake(disk.folder / "journal")
    _append(intake, range(100))
    disk.fill()
    while not intake.in_memory:
        assert intake.append_all(7, [("tags", {"text": "x" * 1000}), ("tags", {})])
    _append(intake, range(100, 101))
    numbers = _numbers(intake)
    assert (numbers[:100], numbers[-1]) == ([*range(100)], 100)
    assert numbers[100:-1] == [7] * (intake.last_seq - 101)


@pytest.mark.parametrize("value", [object(), "\ud800", 10**400])
def test_a_group_with_data_that_is_not_plain_leaves_nothing_behind(
    stem: Path, value: object
) -> None:
    intake = Intake(stem)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        intake.append_all(1, [("tags", {"before": 1}), ("tags", {"m": value})])
    _append(intake, range(2, 4))
    assert (_numbers(intake), intake.last_seq, _on_disk(stem)) == ([2, 3], 2, [2, 3])


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int8(1), np.array(0.5)])
def test_a_number_from_any_library_is_accepted(stem: Path, value: object) -> None:
    intake = Intake(stem)
    intake.append(1, "metrics", (0, 0, {"m": value}))
    (message,) = _all(intake)
    assert message.content[2] == {"m": float(value)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "error"),
    [(object(), TypeError), (1j, TypeError), ("\ud800", ValueError), (10**400, OverflowError)],
)
def test_data_that_is_not_plain_is_rejected_and_leaves_nothing_behind(
    stem: Path, value: object, error: type[Exception]
) -> None:
    intake = Intake(stem)
    with pytest.raises(error):
        intake.append(1, "metrics", (0, 0, {"before": 1.0, "m": value}))
    _append(intake, range(2, 4))
    assert (_numbers(intake), intake.last_seq) == ([2, 3], 2)


@pytest.mark.skipif(os.name == "nt", reason="There, a write releases the lock.")
def test_no_other_thread_runs_while_a_message_is_appended(stem: Path) -> None:
    turns, is_over = 0, False

    def be_busy() -> None:
        nonlocal turns
        while not is_over:
            turns += 1

    intake, before = Intake(stem), sys.getswitchinterval()
    thread = threading.Thread(target=be_busy)
    try:
        thread.start()
        wait_until(lambda: turns > 0, "the other thread is busy")
        # Longer than all of this takes, so that threads alternate only where one gives way.
        sys.setswitchinterval(1.0)
        time.sleep(0)  # gives way, so that the other thread waits with the new interval
        first = turns
        for number in range(300):
            intake.append(number, "params", {"p": "x" * 4_000})
            assert turns == first
    finally:
        is_over = True
        sys.setswitchinterval(before)
        thread.join()


def test_a_closed_intake_accepts_nothing(stem: Path) -> None:
    intake = Intake(stem)
    intake.close()
    assert not intake.append(1, "tags", {})
    assert not intake.append_all(1, [("tags", {})])
    assert intake.last_seq == 0


def test_only_its_owner_can_read_a_file(stem: Path) -> None:
    mask = os.umask(0)
    try:
        Intake(stem)
    finally:
        os.umask(mask)
    assert _file(stem).stat().st_mode & 0o777 == 0o600


# --- a process that is killed ----------------------------------------------------------------


@pytest.mark.parametrize(
    "lines", [1, 5000, *(pytest.param(lines, marks=pytest.mark.slow) for lines in (10, 500))]
)
def test_appended_messages_are_kept_when_their_process_is_killed(stem: Path, lines: int) -> None:
    command = [sys.executable, "-c", _APPEND_UNTIL_KILLED, str(stem)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        rest = process.stdout.read()
    appended = lines + rest.count("\n")
    found = [*read_messages(_file(stem), 0)]
    expected = [(n, "metrics", [n, 2 * n, {"m": n / 7}]) for n in range(len(found))]
    assert _contents(found) == expected
    assert appended <= len(found) <= appended + 1  # killed before it could print the last line


@pytest.mark.parametrize("left", [1, 5, -1])
def test_only_an_incomplete_message_is_lost(stem: Path, left: int) -> None:
    intake = Intake(stem)
    _append(intake, range(9))
    whole = _file(stem).stat().st_size
    _append(intake, range(9, 10))
    left = left % (_file(stem).stat().st_size - whole)
    os.truncate(_file(stem), whole + left)

    assert _on_disk(stem) == list(range(9))
    assert unreadable_bytes(_file(stem)) == left
    intake = Intake(stem, last_seq=9)
    _append(intake, range(20, 22))
    assert _numbers(intake) == [20, 21]
    assert _on_disk(stem) == [*range(9), 20, 21]


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_garbage_does_not_affect_the_messages_before_and_after_it(stem: Path, junk: bytes) -> None:
    _append(Intake(stem), range(5))
    _file(stem).write_bytes(_file(stem).read_bytes() + junk)
    _append(Intake(stem, last_seq=5), range(5, 7))
    before = _file(stem).read_bytes()
    assert _on_disk(stem) == list(range(7))
    assert unreadable_bytes(_file(stem)) == len(junk)
    assert _file(stem).read_bytes() == before


def _damage_the_third_of_five(stem: Path) -> int:
    """Change a bit of a file with five messages; return the size of each."""
    content = bytearray(_file(stem).read_bytes())
    size = len(content) // 5
    content[2 * size + 30] ^= 4
    _file(stem).write_bytes(content)
    return size


def test_damage_to_its_own_file_does_not_affect_a_living_process(stem: Path) -> None:
    intake = Intake(stem)
    _append(intake, range(5))
    _damage_the_third_of_five(stem)
    _append(intake, range(5, 7))
    assert _numbers(intake) == [*range(7)]


def test_a_process_reads_the_undamaged_part_of_its_own_damaged_file(
    stem: Path, small_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(stem)
    _append(intake, range(5))
    size = _damage_the_third_of_five(stem)
    _append(intake, range(5, 7))
    assert _numbers(intake) == [0, 1, 3, 4, 5, 6]
    (text,) = said_by_us(caplog)
    assert f"{size} bytes from byte {2 * size} on cannot be read" in text


def test_messages_that_damage_moved_or_duplicated_are_read_once_and_in_order(stem: Path) -> None:
    _append(Intake(stem), range(40))
    content = _file(stem).read_bytes()
    third = len(content) // 3
    first, second, last = content[:third], content[third : 2 * third], content[2 * third :]
    _file(stem).write_bytes(second + first + second + last + first)
    found = _on_disk(stem)
    assert found == sorted(set(found))
    assert len(found) >= 36


# --- a disk that is full ---------------------------------------------------------------------


def test_a_full_disk_is_reported_once_and_memory_is_used_until_there_is_room(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(disk.folder / "journal")
    _append(intake, range(100))
    disk.fill()
    _append(intake, range(100, 1000))
    assert intake.in_memory > 0
    disk.free()
    _append(intake, range(1000, 1010))  # after those in memory, although there is room again
    assert _numbers(intake) == list(range(1010))
    assert intake.in_memory == 0

    last = intake.last_seq
    _append(intake, range(2000, 2010))
    assert intake.in_memory == 0
    file = disk.folder / "journal.0.intake"
    assert [message.number for message in read_messages(file, last)] == list(range(2000, 2010))
    disk.fill()
    _append(intake, range(3000, 4000))
    assert intake.in_memory > 0
    (told,) = said_by_us(caplog)
    assert f"Records cannot be written to {disk.folder}" in told
    assert "MLFLOW_IAP_OUTBOX" in told


@pytest.mark.forked
def test_messages_in_memory_do_not_overtake_earlier_ones_on_disk(stem: Path) -> None:
    intake = Intake(stem)
    found = intake.take()
    _append(intake, range(1))
    limit_files(0)
    _append(intake, range(1, 2))
    free_files()
    found += intake.take_from_memory()
    assert [message.number for message in found] + _numbers(intake) == [0, 1]


@pytest.mark.forked
def test_a_message_that_was_half_written_is_not_read_twice(stem: Path) -> None:
    intake = Intake(stem)
    _append(intake, range(5), "text")
    limit_files(_file(stem).stat().st_size + 3)
    _append(intake, range(5, 7), "text")
    free_files()
    assert intake.in_memory == 2
    assert _numbers(intake) == list(range(7))
    _append(intake, range(7, 9), "text")
    assert _numbers(intake) == [7, 8]
    assert _on_disk(stem) == [*range(5), 7, 8]


def test_messages_without_room_on_disk_or_in_memory_are_counted_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake = Intake(None)
    _append(intake, range(100), "x" * 1_000_000)
    kept = intake.in_memory
    assert 10 <= kept <= 16
    assert (intake.lost, intake.last_seq) == (100 - kept, kept)
    assert _numbers(intake) == list(range(kept))
    (told,) = said_by_us(caplog)
    assert "are lost" in told
    _append(intake, range(kept), "x" * 1_000_000)  # there is room again
    assert (_numbers(intake), intake.lost) == (list(range(kept)), 100 - kept)


# --- a file that gets long -------------------------------------------------------------------


def test_a_long_file_is_replaced_once_all_of_it_is_taken(stem: Path, short_files: None) -> None:
    intake = Intake(stem, server="s")
    _append(intake, range(5), "x" * 1_000_000)
    assert intake.start_new_file() is None
    taken = intake.take()
    assert intake.start_new_file() is None
    taken += _all(intake)
    assert intake.start_new_file() == _file(stem)
    _append(intake, range(5, 8))
    taken += _all(intake)
    assert [message.number for message in taken] == list(range(8))
    assert _on_disk(stem, 1) == [5, 6, 7]


def test_a_short_file_stays_in_use(stem: Path) -> None:
    intake = Intake(stem)
    _append(intake, range(5))
    _all(intake)
    assert intake.start_new_file() is None


def test_threads_can_append_while_files_are_replaced(stem: Path, short_files: None) -> None:
    intake = Intake(stem)
    found: list[Message] = []
    is_over = threading.Event()

    def append() -> None:
        for n in range(400):
            intake.append(n, "tags", {"text": "x" * 50_000})
        is_over.set()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(append)

        def is_done() -> bool:
            last = is_over.is_set()
            taken = intake.take()
            found.extend(taken)
            if old := intake.start_new_file():
                old.unlink()
            return last and not _file(stem).exists() and not taken

        wait_until(is_done, "all is taken")
    assert [message.number for message in found] == list(range(400))
