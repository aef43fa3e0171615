"""Run the same training with each tracker's LightGBM integration, and report what it stored.

    python benchmarks/lightgbm_peers.py                     # writes lightgbm_peers.md and docs/
    python benchmarks/lightgbm_peers.py --only ours :lgb_cv # keeps the other results

Each peer has its own environment under build/peers, which is created if it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs_parts import COMPARISON, put_into
from peers import content_probes, curve_probes, end_probes  # noqa: F401 - they register
from peers.rows import PROBES, Probe
from peers_table import Column, markdown, short
from rich.console import Console

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE.parent / "build" / "peers"
_ANSWERS = _ENVIRONMENTS / "answers.json"
_AT_ONCE = 2
# Packages that training itself needs.
_SHARED = ["lightgbm", "scikit-learn", "scipy", "pandas", "optuna", "optuna-integration"]
_SHARED += ["dask[distributed]", "matplotlib", "graphviz"]


_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Peer:
    """A column of the table.

    Attributes:
        title: title of the column; the version replaces the braces.
        environment: name of its folder in build/peers; columns may share one.
        packages: packages to install besides the shared ones; the first one's version is shown.
        note: text below the table.
    """

    title: str
    environment: str
    packages: tuple[str, ...]
    note: str = ""


_PEERS = {
    "ours": Peer("`IAPLightGBMCallback`", "mlflow", ("mlflow",)),
    "mlflow": Peer("`mlflow.lightgbm.autolog` {}", "mlflow", ("mlflow",)),
    "wandb": Peer("wandb {}", "wandb", ("wandb",)),
    "neptune": Peer("neptune-lightgbm {}", "neptune", ("neptune-lightgbm", "neptune")),
    "neptune-old": Peer(
        "neptune-lightgbm {} (older libraries)",
        "neptune-old",
        ("neptune-lightgbm", "neptune", "scipy<1.12", "matplotlib<3.9"),
        "With SciPy {scipy} and Matplotlib {matplotlib}, with which it imports and draws.",
    ),
    "swanlab": Peer("SwanLab {}", "swanlab", ("swanlab",)),
    "dvclive": Peer("DVCLive {}", "dvclive", ("dvclive",)),
}


@dataclass(frozen=True)
class Answer:
    """The result of a probe's process."""

    peer: str
    probe: Probe
    cells: Mapping[str, str]
    seen: Mapping[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", metavar="[PEER][:PROBE]", help="keep the other results"
    )
    arguments = parser.parse_args()
    # Exit by an exception on SIGTERM, so that the server is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    console = Console(width=160)
    wanted = _wanted(arguments.only)
    for environment in {_PEERS[name].environment for name, _ in wanted}:
        _make_environment(environment)
    asked = {f"{each.peer}:{each.probe.name}": each for each in _ask_all(wanted, console)}
    answers = {**(_last_seen() if arguments.only else {}), **asked}
    seen = {name: [answer.cells, answer.seen] for name, answer in answers.items()}
    _ANSWERS.write_text(json.dumps(seen, indent=1), encoding="utf-8")
    columns = [_column(name, list(answers.values())) for name in _PEERS]
    text = markdown(list(PROBES.values()), columns, platform.python_version())
    (_HERE / "lightgbm_peers.md").write_text(text, encoding="utf-8")
    put_into(COMPARISON, "make peers", short(columns))


def _last_seen() -> dict[str, Answer]:
    if not _ANSWERS.exists():
        return {}
    found = json.loads(_ANSWERS.read_text(encoding="utf-8"))
    named = {name: (*name.split(":"), *answer) for name, answer in found.items()}
    return {
        name: Answer(peer, PROBES[probe], cells, seen)
        for name, (peer, probe, cells, seen) in named.items()
        if probe in PROBES
    }


def _wanted(only: Sequence[str] | None) -> list[tuple[str, Probe]]:
    every = [(name, probe) for probe in PROBES.values() for name in _PEERS]
    # The longest ones first, because the end must wait for them.
    every.sort(key=lambda each: -each[1].timeout)
    if not only:
        return every
    return [
        (name, probe)
        for name, probe in every
        if name in only or f"{name}:{probe.name}" in only or f":{probe.name}" in only
    ]


def _python(environment: str) -> Path:
    return _ENVIRONMENTS / environment / "bin" / "python"


def _make_environment(name: str) -> None:
    uv = [sys.executable, "-m", "uv"]
    if (_ENVIRONMENTS / name / "ready").exists():
        return
    packages = next(peer.packages for peer in _PEERS.values() if peer.environment == name)
    own = ["--editable", str(_HERE.parent)] if name == "mlflow" else []
    path = _ENVIRONMENTS / name
    subprocess.run(
        [*uv, "venv", "-q", "--clear", "--python", sys.executable, str(path)], check=True
    )
    install = [*uv, "pip", "install", "-q", "--upgrade", "--python", str(_python(name))]
    subprocess.run([*install, *packages, *_SHARED, *own], check=True)
    (path / "ready").touch()


def _ask_all(wanted: Sequence[tuple[str, Probe]], console: Console) -> list[Answer]:
    with (
        tempfile.TemporaryDirectory() as name,
        MlflowServer(Path(name)) as server,
        LocalCloud(server.url) as cloud,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        variables = cloud.environment()
        unimportable: dict[str, Answer] = {}

        def ask(each: tuple[str, Probe]) -> Answer:
            name, probe = each
            if name in unimportable:
                known = unimportable[name]
                error = next(iter(known.cells.values()))
                return Answer(name, probe, dict.fromkeys(probe.rows, error), known.seen)
            answer = _ask(name, probe, variables if name == "ours" else {}, server.url)
            if "import" in answer.seen:
                unimportable[name] = answer
            console.print(f"[bold]{answer.peer} {answer.probe.name}[/] {dict(answer.cells)}")
            console.print(dict(answer.seen), markup=False, style="dim")
            return answer

        try:
            return list(pool.map(ask, wanted))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                _end(process)
            raise


def _ask(name: str, probe: Probe, variables: Mapping[str, str], server: str) -> Answer:
    dropped = ("MLFLOW_", "GOOGLE_", "WANDB_", "NEPTUNE_", "SWANLAB_", "DVC")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [_python(_PEERS[name].environment), "-m", "peers.ask", name, probe.name],
            env={
                **kept,
                **variables,
                "PEERS_MLFLOW_URL": server,
                "MLFLOW_IAP_OUTBOX": f"{folder}/outbox",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DVC_NO_ANALYTICS": "true",
                "HOME": folder,
                "MPLBACKEND": "agg",
                "PYTHONPATH": str(_HERE),
                "PYTHONWARNINGS": "ignore",
            },
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # killed with all processes that it started
        )
        _running.add(process)
        try:
            line, _ = process.communicate(timeout=probe.timeout)
            answer: dict[str, Any] = json.loads(line.splitlines()[-1])
        except subprocess.TimeoutExpired:
            cell = f"fails: no end within {probe.timeout:.0f} s"
            answer = {"cells": dict.fromkeys(probe.rows, cell), "seen": {}}
        except (ValueError, IndexError):
            log.seek(0)
            raise RuntimeError(
                f"{name}:{probe.name} gave no answer:\n{log.read()[-3000:]}"
            ) from None
        finally:
            _end(process)
            _running.discard(process)
            shutil.rmtree(Path(folder) / "outbox", ignore_errors=True)
    return Answer(name, probe, answer["cells"], answer["seen"])


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _column(name: str, answers: Sequence[Answer]) -> Column:
    peer = _PEERS[name]
    mine = [answer for answer in answers if answer.peer == name]
    cells = {(a.probe.name, row): cell for a in mine for row, cell in a.cells.items()}
    why = next((a.seen["import"] for a in mine if "import" in a.seen), None)
    package = peer.packages[0]
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    shown = (package, "lightgbm", "scipy", "matplotlib")
    command = [str(_python(peer.environment)), "-c", code, *shown]
    versions = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    found = dict(zip(shown, versions, strict=True))
    return Column(peer.title.format(found[package]), found, cells, why, peer.note.format(**found))


if __name__ == "__main__":
    main()
