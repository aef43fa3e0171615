"""Decides what a cell of the table says, by comparing what is stored with what is expected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .peer import Curves, StoredRun

YES, NO = "yes", "no"
_TEXTS = {".json", ".txt", ".yaml", ".yml", ".csv", ".tsv", ".md", ".html", ""}
_IMAGES = {".png": b"\x89PNG", ".svg": b"<", ".jpg": b"\xff\xd8"}


def part(what: str) -> str:
    return f"part: {what}"


def yes_if(is_so: object) -> str:
    return YES if is_so else NO


def curves(expected: Curves, runs: Sequence[StoredRun]) -> str:
    """Whether a run has each expected curve, every point at its own step."""
    if not runs:
        return "no: no run"
    return max((_curves(expected, run) for run in runs), key=_rank)


def _rank(cell: str) -> tuple[bool, bool]:
    return cell == YES, cell.startswith("part")


def _curves(expected: Curves, run: StoredRun) -> str:
    if holds(expected, run):
        return YES
    stored = list(run.curves.values())
    wanted = [point for curve in expected.values() for point in curve]
    if all(set(curve) <= {p for c in stored for p in c} for curve in expected.values()):
        more = [c for c in stored if any(set(e) < set(c) for e in expected.values())]
        if more:
            return part("further points in the curve")
        return part("curves merged")
    values = [[value for _, value in curve] for curve in stored]
    if all([value for _, value in curve] in values for curve in expected.values()):
        return part("other steps")
    kept = sum(max((len(set(c) & set(e)) for c in stored), default=0) for e in expected.values())
    return part(f"{kept} of {len(wanted)} points") if kept else NO


def holds(expected: Curves, run: StoredRun) -> bool:
    """Whether each expected curve equals a different stored one."""
    left = [list(curve) for curve in run.curves.values()]
    for curve in expected.values():
        if curve not in left:
            return False
        left.remove(curve)
    return True


def one_run_each(expected: Sequence[Curves], runs: Sequence[StoredRun]) -> str:
    """Whether each model has a run with its curves, and there is no other run."""
    full = sum(any(holds(curves, run) for run in runs) for curves in expected)
    if full == len(expected) == len(runs):
        return YES
    found = f"{full} of {len(expected)} curves, {len(runs)} runs"
    return part(found) if full else f"no: {found}"


def texts(run: StoredRun) -> Iterator[tuple[str, str]]:
    """Yield name and text of everything that is stored except curves and models."""
    yield "params", "\n".join(f"{name}={value}" for name, value in run.params.items())
    for name, value in run.values.items():
        yield f"value {name}", f"{name}={value if isinstance(value, str) else json.dumps(value)}"
    yield "data sets", "\n".join(run.inputs)
    for name, path in run.files.items():
        if path.suffix in _TEXTS:
            text = path.read_text(errors="replace")
            # A model's text contains everything, but only for LightGBM.
            if "tree_sizes=" not in text:
                yield name, text


def says(run: StoredRun, pattern: str) -> str | None:
    """Return what matches a pattern, as name and match."""
    for name, text in texts(run):
        match = re.search(pattern, text)
        if match:
            return f"{name}: {match[0][:200]}"
    return None


def number(value: float) -> str:
    """Return a pattern for a number on its own."""
    return rf"(?<![\w.:\-]){re.escape(str(value))}(?![\w.:\-]|\.\d)"


def pictures(run: StoredRun, pattern: str) -> list[str]:
    """Return names of pictures, and of charts that the tracker draws."""
    found = [
        name
        for name, path in run.files.items()
        if path.suffix in _IMAGES and path.read_bytes().lstrip().startswith(_IMAGES[path.suffix])
    ]
    return [name for name in (*found, *run.charts) if re.search(pattern, name, re.IGNORECASE)]


def has_table(run: StoredRun, names: Sequence[str], values: Sequence[float]) -> str | None:
    """Return the name of a text with all these names and numbers (to six digits), except zeros."""
    rows = [(name, value) for name, value in zip(names, values, strict=True) if value]
    needed = {f"{value:.6g}" for _, value in rows}
    for name, text in texts(run):
        if not all(each in text for each, _ in rows):
            continue
        found = re.findall(r"-?\d+\.?\d*(?:[eE][+-]?\d+)?", text)
        if needed <= {f"{float(each):.6g}" for each in found}:
            return name
    return None


def values_named(run: StoredRun, pattern: str) -> Mapping[str, Any]:
    matching = {**run.params, **run.values}
    flat = dict(_flat(matching))
    return {name: v for name, v in flat.items() if re.search(pattern, name, re.IGNORECASE)}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def is_number(value: Any, wanted: float) -> bool:
    try:
        return abs(float(value) - wanted) < 1e-12
    except (TypeError, ValueError):
        return False


def model_files(run: StoredRun) -> Iterator[tuple[str, Path]]:
    for name, path in run.files.items():
        is_text = path.suffix in (".txt", ".lgb") and b"tree_sizes=" in path.read_bytes()
        if is_text or path.suffix in (".pkl", ".pickle"):
            yield name, path
