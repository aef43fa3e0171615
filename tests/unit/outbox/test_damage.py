"""Damaged journals: only those records are lost whose own bytes are damaged.

Damage to anything else costs no record: SQLite's own data (headers, schema, inner pages), the WAL,
the journal's description of itself, and the states of its runs.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import settings

from mlflow_iap_callbacks.outbox import Outbox, QueuedRun, database, frames, journal_content
from mlflow_iap_callbacks.outbox.adoption import orphans
from mlflow_iap_callbacks.outbox.journal_folder import new_outbox, survey

_SERVER = "http://server"
_MEMORY = "/dev/shm"  # many small journals are created, which takes time on a disk
_Record = tuple[str, Any]


@dataclass
class _Journal:
    """The files of a killed process's journal, and what it appended to each run."""

    files: dict[str, bytes]
    appended: dict[str, list[_Record]]

    def part(self, suffix: str) -> str:
        (name,) = (name for name in self.files if name.endswith(suffix))
        return name


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    parent = Path(_MEMORY) if os.path.isdir(_MEMORY) else tmp_path
    folder = parent / f"damage-{os.getpid()}"
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _journal(folder: Path, *, runs: int, stored: int, appended: int, text: int = 1) -> _Journal:
    """Return the journal of a killed process with these numbers of records in its two parts."""
    outbox = new_outbox(_SERVER)
    queued = [outbox.begin(f"key {n}", "name:experiment") for n in range(runs)]
    expected: dict[str, list[_Record]] = {run.key: [] for run in queued}

    def append(run: QueuedRun, kind: str, content: Any) -> None:
        outbox.intake.append(run.number, kind, content)
        expected[run.key].append((kind, content))

    for run in queued:
        append(run, "start", {"key": run.key, "experiment": run.experiment, "tags": {"a": "b"}})
    for step in range(stored + appended):
        if step == stored // 2:
            outbox.collect()
            assert outbox._move_to_database()
            assert outbox._checkpoint()
        if step == stored:
            outbox.collect()
            assert outbox._move_to_database()
        for run in queued:
            append(run, "tags", {f"{run.key} {step}": "x" * text})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    outbox.close()
    shutil.rmtree(folder)
    return _Journal(files, expected)


def _found(folder: Path, files: dict[str, bytes]) -> dict[str, list[_Record]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    survey()  # raises nothing
    found: dict[str, list[_Record]] = {}
    for outbox in orphans(_SERVER):
        assert isinstance(outbox, Outbox), outbox
        assert outbox.server == _SERVER
        for run in outbox.runs():
            assert run.experiment == "name:experiment"
            found.setdefault(run.key, []).extend(_records(outbox, run))
        outbox.close()
    return found


def _records(outbox: Outbox, run: QueuedRun) -> Iterator[_Record]:
    while records := outbox.read(run, outbox.last_seq):
        yield from ((record.kind, record.content) for record in records)
        outbox.settle(run, records)


def _lost(journal: _Journal, found: dict[str, list[_Record]]) -> int:
    """Return the number of records that were not found; check the order of the others."""
    assert found.keys() <= journal.appended.keys()
    lost = 0
    for key, appended in journal.appended.items():
        records = found.get(key, [])
        places = [appended.index(record) for record in records]
        assert places == sorted(places), key
        lost += len(appended) - len(set(places))
    return lost


def _flipped(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _flip_bits(folder: Path, step: int) -> dict[str, dict[int, int]]:
    """Flip bits of each file, and count the flips by the number of records that each lost."""
    journal = _journal(folder, runs=2, stored=4, appended=3)
    assert _lost(journal, _found(folder, journal.files)) == 0
    costs: dict[str, dict[int, int]] = {}
    for name, content in journal.files.items():
        cost = costs.setdefault(name.split(".", 1)[1], {})
        # SQLite rebuilds its shared memory without reading it when the first process connects.
        every = 211 * step if name.endswith("-shm") else step
        for bit in range(0, 8 * len(content), every):
            files = {**journal.files, name: _flipped(content, bit)}
            lost = _lost(journal, _found(folder, files))
            cost[lost] = cost.get(lost, 0) + 1
    return costs


def _assert_within_reach(costs: dict[str, dict[int, int]]) -> None:
    for suffix, cost in costs.items():
        most = 1 if suffix == "sqlite" or suffix.endswith(".intake") else 0
        assert max(cost, default=0) <= most, (suffix, cost)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a database has fewer bits."""
    for module in (database, journal_content):
        monkeypatch.setattr(module, "PAGE_BYTES", 512)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("step", [2503, pytest.param(401, marks=pytest.mark.slow)])
def test_a_flipped_bit_loses_at_most_the_record_it_is_in(folder: Path, step: int) -> None:
    _assert_within_reach(_flip_bits(folder, step))


@pytest.mark.parametrize("place", [None, -1, 1 << 64, 0.5, "1", b"1"])
def test_a_frame_at_a_place_that_damage_made_up_is_damaged(place: object) -> None:
    frame = frames.pack(b"m", 1, b"payload")
    assert frames.unpack(frame, b"m", 1) == b"payload"
    assert frames.unpack(frame, b"m", place) is None


_MOST_MEMORY = 200 * 2**20  # bytes, above what the process took before


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.soak
@pytest.mark.timeout(20_000)
@pytest.mark.usefixtures("small_pages")
def test_each_flipped_bit_loses_at_most_the_record_it_is_in(folder: Path) -> None:
    before = _peak_memory()
    costs = _flip_bits(folder, 1)
    print(costs, "peak memory:", _peak_memory() - before)
    _assert_within_reach(costs)
    assert _peak_memory() - before < _MOST_MEMORY


def _cut(content: bytes, first: int, end: int, _: random.Random) -> bytes:
    return content[:first]


def _remove(content: bytes, first: int, end: int, _: random.Random) -> bytes:
    return content[:first] + content[end:]


def _zero(content: bytes, first: int, end: int, _: random.Random) -> bytes:
    return content[:first] + bytes(end - first) + content[end:]


def _fill(content: bytes, first: int, end: int, chance: random.Random) -> bytes:
    return content[:first] + chance.randbytes(end - first) + content[end:]


def _double(content: bytes, first: int, end: int, _: random.Random) -> bytes:
    return content[:end] + content[first:end] + content[end:]


def _copy(content: bytes, first: int, end: int, chance: random.Random) -> bytes:
    to = chance.randrange(len(content))
    return (content[:to] + content[first:end] + content[to + end - first :])[: len(content)]


def _swap_pages(content: bytes, first: int, end: int, chance: random.Random) -> bytes:
    pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    for page in (first // 4096, end // 4096):
        other = chance.randrange(len(pages))
        if page < len(pages):
            pages[page], pages[other] = pages[other], pages[page]
    return b"".join(pages)


_DAMAGES: list[Callable[[bytes, int, int, random.Random], bytes]] = [
    *(_cut, _remove, _zero, _fill, _double, _copy, _swap_pages)
]


def _damaged(journal: _Journal, chance: random.Random) -> dict[str, bytes]:
    files = dict(journal.files)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        name = chance.choice([name for name, content in files.items() if len(content) > 1])
        content = files[name]
        first = chance.randrange(len(content))
        end = min(len(content), first + chance.choice([1, 30, 500, 4096, 20_000, 100_000]))
        files[name] = chance.choice(_DAMAGES)(content, first, end, chance)
    return files


def _whole_frames(journal: _Journal, files: dict[str, bytes]) -> int:
    """Number of records with an undamaged frame, in one piece, in the database or the intake."""
    contents = [c for name, c in files.items() if name.endswith((".sqlite", ".intake"))]
    whole = 0
    for number, appended in enumerate(journal.appended.values(), 1):
        for kind, content in appended:
            payload = msgpack.packb((number, kind, content))
            whole += any(_is_whole(payload, file) for file in contents)
    return whole


def _is_whole(payload: bytes, file: bytes) -> bool:
    found = file.find(payload)
    while found >= 0:
        frame = file[max(0, found - frames.HEADER_BYTES) : found + len(payload)]
        if any(frames.unpack(frame, letter, _place(frame)) for letter in (b"m", b"i")):
            return True
        found = file.find(payload, found + 1)
    return False


def _place(frame: bytes) -> int:
    return int.from_bytes(frame[8:16], "little")


def _damage_at_random(folder: Path, number: int, seed: int) -> dict[str, float]:
    chance = random.Random(seed)
    journal = _journal(folder, runs=3, stored=300, appended=40, text=200)
    total = sum(map(len, journal.appended.values()))
    lost, slowest = 0, 0.0
    for _ in range(number):
        files = _damaged(journal, chance)
        began = time.perf_counter()
        cost = _lost(journal, _found(folder, files))
        slowest = max(slowest, time.perf_counter() - began)
        assert total - cost >= _whole_frames(journal, files)
        lost += cost
    return {"lost of each": lost / number, "of": total, "slowest take-over": slowest}


def test_damage_of_any_kind_loses_at_most_the_records_it_touches(folder: Path) -> None:
    _damage_at_random(folder, settings().max_examples // 10, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(20_000)
def test_many_kinds_of_damage_lose_at_most_the_records_they_touch(folder: Path) -> None:
    seed, before = random.randrange(1 << 32), _peak_memory()
    print("seed", seed)
    print(_damage_at_random(folder, 10_000, seed), "peak memory:", _peak_memory() - before)
    assert _peak_memory() - before < _MOST_MEMORY
