"""What arrives from processes that log, end, are killed, fork or pass work on to others."""

from __future__ import annotations

import re
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow.entities import Run

from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.outbox import journal_folder
from optuna_equality import is_of_a_study
from scripts import DEADLINE, Script, Start, command
from variables import set_all
from waiting import wait_until

_ENDED = "mlflow_iap.ended"
_LEFT = re.compile(r"(\d+) records? left on disk for \S+\. `mlflow-iap sync` sends what is left")

IMPORTS = """
import multiprocessing, os, signal, sys, threading
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback, IAPMlflowClient
from mlflow_iap_callbacks.delivery.lifecycle import sender_for
from mlflow_iap_callbacks.delivery.run_writer import RunWriter

NAME = sys.argv[1]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # for sigwait
"""


class _Seen(NamedTuple):
    """A run in MLflow; ``points`` by metric, each as (step, value)."""

    status: str
    is_told: bool
    points: dict[str, list[tuple[int, float]]]
    params: dict[str, str]


def _runs(name: str) -> list[Run]:
    client = IAPMlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def _seen(name: str) -> dict[str, _Seen]:
    """The experiment's runs by name, without studies' runs; all names are different."""
    client = IAPMlflowClient()
    runs = [run for run in _runs(name) if not is_of_a_study(run)]
    seen = {run.info.run_name: _look_at(client, run) for run in runs}
    assert len(seen) == len(runs)
    return seen


def _look_at(client: IAPMlflowClient, run: Run) -> _Seen:
    points: dict[str, list[tuple[int, float]]] = {}
    for metric in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, metric)
        points[metric] = sorted((point.step, point.value) for point in history)
    return _Seen(run.info.status, _ENDED in run.data.tags, points, dict(run.data.params))


def _line(first: int, end: int) -> list[tuple[int, float]]:
    """The points that the scripts log from one step to another."""
    return [(step, step / 2) for step in range(first, end)]


def _files() -> list[str]:
    folder = journal_folder.folder()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _waiting() -> int:
    return sum(journal.records() for journal in journal_folder.survey())


# --- the end of a process ----------------------------------------------------------------------


def test_a_script_that_exits_without_flush_delivers_everything_and_leaves_no_journal(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import lightgbm as lgb, numpy as np, optuna
        rng = np.random.default_rng(0)
        data = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
        params = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 1}
        callback = IAPMLflowCallback()

        def objective(trial):
            kept = {}
            rate = trial.suggest_float("learning_rate", 0.01, 0.3)
            lgb.train({**params, "learning_rate": rate}, data, 10, valid_sets=[data], callbacks=[
                lgb.record_evaluation(kept), IAPLightGBMCallback(run=callback.run(trial))])
            curve = kept["training"]["binary_logloss"]
            print(trial.number, rate, *curve)
            return curve[-1]

        study = optuna.create_study(study_name=NAME)
        study.optimize(objective, 3, callbacks=[callback])
        kept = {}
        lgb.train(params, data, 10, valid_sets=[data], callbacks=[lgb.record_evaluation(kept),
            IAPLightGBMCallback(experiment_name=NAME, run_name="alone")])
        print("alone", 0, *kept["training"]["binary_logloss"])
        """,
        name,
    )
    assert script.end() == 0, script.err
    seen = _seen(name)
    assert {run.status for run in seen.values()} == {"FINISHED"}
    logged = [line.split() for line in script.out.splitlines()]
    assert seen.keys() == {line[0] for line in logged} == {"0", "1", "2", "alone"}
    for number, rate, *curve in logged:
        expected = [(step, float(value)) for step, value in enumerate(curve)]
        assert seen[number].points["training-binary_logloss"] == expected
        if number != "alone":
            assert seen[number].points["value"] == [(0, float(curve[-1]))]
            assert float(seen[number].params["learning_rate"]) == float(rate)
    assert _files() == []


def test_a_process_that_exits_normally_prints_nothing(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start("RunWriter(IAPMlflowClient(), NAME).finish()", name)
    assert script.end() == 0
    assert (script.out, script.err) == ("", "")


def test_a_run_left_open_at_exit_ends_with_its_exit_status_or_as_failed_with_a_tag(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        client = IAPMlflowClient()
        for name, status in [("open", None), ("said", "FINISHED"), ("taken back", "KILLED")]:
            run = RunWriter(client, NAME, run_name=name)
            run.finish_at_exit(status)
            run.log_metrics({"m": 0.5}, step=1)
        run.finish_at_exit(None)
        RunWriter(client, NAME, run_name="finished").finish("KILLED")
        """,
        name,
    )
    assert script.end() == 0, script.err
    ends = {run: (seen.status, seen.is_told) for run, seen in _seen(name).items()}
    assert ends == {
        "open": ("FAILED", True),
        "said": ("FINISHED", False),
        "taken back": ("FAILED", True),
        "finished": ("KILLED", False),
    }
    assert _seen(name)["open"].points == {"m": [(1, 0.5)]}


def test_an_exit_inside_a_with_block_delivers_everything_and_fails_the_run(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import lightgbm as lgb, numpy as np
        rng = np.random.default_rng(0)
        data = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))

        def leave(env):
            if env.iteration == 4:
                sys.exit(5)

        with IAPLightGBMCallback(experiment_name=NAME, run_name="with") as callback:
            lgb.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 10,
                valid_sets=[data], callbacks=[callback, leave])
        """,
        name,
    )
    assert script.end() == 5, script.err
    run = _seen(name)["with"]
    assert run.status == "FAILED"
    assert [step for step, _ in run.points["training-binary_logloss"]] == [0, 1, 2, 3, 4]


def test_threads_that_keep_logging_do_not_delay_the_exit_and_lose_nothing(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import itertools
        client = IAPMlflowClient()
        logged = [0] * 4
        begun = threading.Barrier(5)

        def log(number):
            run = RunWriter(client, NAME, run_name=str(number))
            for step in itertools.count():
                run.log_metrics({"m": step / 2}, step=step)
                logged[number] = step + 1
                if step == 100:
                    begun.wait()
                threading.Event().wait(0.004)

        for number in range(4):
            threading.Thread(target=log, args=(number,), daemon=True).start()
        begun.wait()
        print(*logged)
        """,
        name,
    )
    assert script.end() == 0, script.err
    at_least = [int(number) for number in script.out.split()]
    assert command("sync").returncode == 0  # what was logged while the interpreter was exiting
    seen = _seen(name)
    for number, least in enumerate(at_least):
        points = seen[str(number)].points["m"]
        assert len(points) >= least
        assert points == _line(0, len(points))
    assert _waiting() == 0


# --- an unreachable server ---------------------------------------------------------------------

_AWAY = """
client = IAPMlflowClient(max_attempts=1)
for number in range(2):
    run = RunWriter(client, NAME, run_name=str(number))
    run.log_params({"p": number})
    for step in range(20):
        run.log_metrics({"m": step / 2}, step=step)
    run.finish()
"""


@pytest.mark.parametrize(
    "is_port_closed",
    [pytest.param(False, marks=pytest.mark.slow, id="503"), pytest.param(True, id="port closed")],
)
def test_a_process_exits_while_the_server_is_down_and_sync_delivers_its_records(
    is_port_closed: bool,
    new_cloud: Callable[..., LocalCloud],
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    name: str,
) -> None:
    with new_cloud() as cloud:
        set_all(monkeypatch, cloud.environment())
        port = int(cloud.url.rpartition(":")[2])
        if is_port_closed:
            cloud.stop()
        else:
            cloud.fault("answer", status=503, times=0)
        script = start(_AWAY, name)
        assert script.end() == 0, script.err
        told = _LEFT.search(script.err)
        assert told is not None, script.err
        assert int(told[1]) == 2 * 23

    with new_cloud(port=port) as cloud:
        set_all(monkeypatch, cloud.environment())
        dry = command("sync", "--dry-run")
        assert (dry.returncode, dry.stdout.strip()) == (
            0,
            f"would send 46 records of 2 runs to {cloud.url}",
        )
        assert not cloud.requests
        status = command("status")
        assert re.search(rf"process +{script.pid} on \S+ \(dead\)", status.stdout)
        assert re.search(rf"server +{cloud.url}\s", status.stdout)
        assert "46 records of 2 runs (2 finish, 40 metrics, 2 params, 2 start)" in status.stdout
        assert "`mlflow-iap sync` sends what dead processes left behind." in status.stdout

        done = command("sync")
        assert (done.returncode, "sent 46 records" in done.stdout) == (0, True), done.stdout
        seen = _seen(name)
        assert seen == {
            str(number): _Seen("FINISHED", False, {"m": _line(0, 20)}, {"p": str(number)})
            for number in range(2)
        }
        again = command("sync")
        assert (again.returncode, "There is nothing to send" in again.stdout) == (0, True)
        assert "No records are waiting" in command("status").stdout
        assert _files() == []


@pytest.mark.slow
def test_sync_says_why_the_server_is_unreachable_and_keeps_everything(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    cloud.members.clear()
    script = start(_AWAY, name)
    assert script.end() == 0, script.err
    assert "httpsResourceAccessor" in script.err
    done = command("sync")
    assert done.returncode == 1
    assert "46 records waiting" in done.stdout
    assert "httpsResourceAccessor" in done.stdout + done.stderr
    assert "httpsResourceAccessor" in command("status").stdout
    cloud.members.add(cloud.trainer)
    assert command("sync").returncode == 0
    assert {run.points["m"] == _line(0, 20) for run in _seen(name).values()} == {True}


def test_ctrl_c_stops_the_delivery_at_exit_and_reports_what_stays_on_disk(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    cloud.fault("answer", status=503, times=0)
    script = start(_AWAY, name)
    script.wait_for("cannot be written to")
    script.send(signal.SIGINT)
    # Well before the half minute that the delivery could take.
    assert script.end(15.0) == 0, script.err
    assert _LEFT.search(script.err) is not None, script.err
    assert "Traceback" not in script.err, script.err
    assert _waiting() == 46


# --- kill -9 -----------------------------------------------------------------------------------

_OPEN = """
client = IAPMlflowClient()
run = RunWriter(client, NAME, run_name="open", key=sys.argv[2] if len(sys.argv) > 2 else None)
for step in range(20):
    run.log_metrics({"m": step / 2}, step=step)
run.run_id()
for step in range(20, 50):
    run.log_metrics({"m": step / 2}, step=step)
print("logged")
threading.Event().wait()
"""


def _killed(start: Start, name: str, *arguments: str, **variables: str) -> Script:
    """A process that died with a run of 50 points open, some of which were delivered."""
    script = start(_OPEN, name, *arguments, **variables)
    script.wait_for("logged")
    script.kill()
    return script


def test_the_next_process_delivers_what_a_killed_one_left_behind(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = _killed(start, name)
    status = command("status").stdout
    assert re.search(rf"process +{script.pid} on \S+ \(dead\)", status), status
    following = start("RunWriter(IAPMlflowClient(), NAME, run_name='next').finish()", name)
    assert following.end() == 0, following.err
    assert _seen(name) == {
        "open": _Seen("FAILED", True, {"m": _line(0, 50)}, {}),
        "next": _Seen("FINISHED", False, {}, {}),
    }
    assert _files() == []


def test_sync_delivers_what_a_killed_process_left_behind_and_ignores_a_live_one(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    living = start(
        """
        run = RunWriter(IAPMlflowClient(), NAME, run_name="living")
        for step in range(10):
            run.log_metrics({"m": step / 2}, step=step)
        run.run_id()
        print("logged")
        sys.stdout.flush()
        signal.sigwait([signal.SIGUSR1])
        for step in range(10, 20):
            run.log_metrics({"m": step / 2}, step=step)
        run.finish()
        """,
        name,
    )
    living.wait_for("logged")
    # The live process does not take over this journal: it looks for dead processes at its start,
    # which was before the kill, and then once a minute.
    _killed(start, name)
    status = command("status").stdout
    assert re.search(rf"process +{living.pid} on \S+ \(alive\)", status), status
    assert command("sync").returncode == 0
    seen = _seen(name)
    assert seen["open"] == _Seen("FAILED", True, {"m": _line(0, 50)}, {})
    assert (seen["living"].status, seen["living"].is_told) == ("RUNNING", False)
    assert [journal.pid for journal in journal_folder.survey()] == [living.pid]
    living.send(signal.SIGUSR1)
    assert living.end() == 0, living.err
    assert _seen(name)["living"] == _Seen("FINISHED", False, {"m": _line(0, 20)}, {})
    assert _files() == []


def test_one_sync_delivers_what_two_dead_processes_logged_to_the_same_run(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    cloud.fault("answer", status=503, times=0)
    script = start(
        """
        run = RunWriter(IAPMlflowClient(max_attempts=1), NAME, run_name="shared")
        pid = os.fork()
        run.log_metrics({"child" if pid == 0 else "parent": 0.5}, step=1)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        print("logged")
        threading.Event().wait()
        """,
        name,
    )
    script.wait_for("logged")
    script.kill()
    cloud.clear_faults()
    # While the run's creation is delayed, a search for the run, to log the child's records, finds
    # none.
    cloud.fault("answer", path="runs/create", status=429, retry_after=1)
    done = command("sync")
    assert done.returncode == 0, done.stdout
    assert _seen(name)["shared"].points == {"child": [(1, 0.5)], "parent": [(1, 0.5)]}
    assert _files() == []


_RESUMED = """
client = IAPMlflowClient()
run = RunWriter(client, NAME, run_name="open", key=sys.argv[2])
for step in range(50, 70):
    run.log_metrics({"m": step / 2}, step=step)
sender_for(client).flush(60.0)
print("resumed")
sys.stdout.flush()
signal.sigwait([signal.SIGUSR1])
run.finish("KILLED")
"""


@pytest.mark.parametrize("is_delivered_before", [False, True], ids=["not yet", "delivered before"])
def test_a_run_that_is_resumed_by_its_key_continues_and_has_all_points(
    is_delivered_before: bool, cloud: LocalCloud, start: Start, name: str
) -> None:
    key = uuid.uuid4().hex
    _killed(start, name, key)
    if is_delivered_before:
        assert command("sync").returncode == 0
        assert _seen(name)["open"].status == "FAILED"
    resumed = start(_RESUMED, name, key)
    resumed.wait_for("resumed")
    assert command("sync").returncode == 0
    seen = _seen(name)
    assert seen["open"].status == "RUNNING"
    assert seen["open"].points == {"m": _line(0, 70)}
    resumed.send(signal.SIGUSR1)
    assert resumed.end() == 0, resumed.err
    assert _seen(name) == {"open": _Seen("KILLED", False, {"m": _line(0, 70)}, {})}


def test_a_run_resumed_on_another_machine_continues_when_the_dead_journal_arrives_late(
    cloud: LocalCloud, start: Start, name: str, tmp_path: Path
) -> None:
    key = uuid.uuid4().hex
    cloud.fault("answer", status=503, times=0)
    dead = start(
        """
        run = RunWriter(IAPMlflowClient(), NAME, run_name="open", key=sys.argv[2])
        for step in range(50):
            run.log_metrics({"m": step / 2}, step=step)
        print("logged")
        threading.Event().wait()
        """,
        *(name, key),
    )
    dead.wait_for("logged")
    dead.kill()
    cloud.clear_faults()
    resumed = start(_RESUMED, name, key, MLFLOW_IAP_OUTBOX=str(tmp_path / "another"))
    resumed.wait_for("resumed")
    assert command("sync").returncode == 0
    assert _seen(name) == {"open": _Seen("RUNNING", False, {"m": _line(0, 70)}, {})}
    resumed.send(signal.SIGUSR1)
    assert resumed.end() == 0, resumed.err
    assert _seen(name)["open"].status == "KILLED"


# --- SIGTERM -----------------------------------------------------------------------------------


def test_training_that_gets_sigterm_delivers_its_records_and_is_then_killed_by_it(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import itertools
        run = RunWriter(IAPMlflowClient(), NAME, run_name="open")
        for step in itertools.count():
            run.log_metrics({"m": step / 2}, step=step)
            if step == 50:
                print("logged")
            threading.Event().wait(0.001)
        """,
        name,
    )
    script.wait_for("logged")
    script.send(signal.SIGTERM)
    assert script.end() == -signal.SIGTERM, script.err
    assert script.err.count("left on disk") <= 1, script.err
    assert "Traceback" not in script.err, script.err
    seen = _seen(name)["open"]
    assert (seen.status, seen.is_told) == ("FAILED", True)
    assert len(seen.points["m"]) > 50
    assert seen.points["m"] == _line(0, len(seen.points["m"]))
    assert command("sync").returncode == 0  # what was logged while the process was being ended
    seen = _seen(name)["open"]
    assert (seen.status, seen.is_told) == ("FAILED", True)
    assert seen.points["m"] == _line(0, len(seen.points["m"]))


@pytest.mark.slow
def test_a_sweep_in_two_threads_loses_no_trial_after_sigterm(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import optuna, os
        callback = IAPMLflowCallback()

        def objective(trial):
            run = callback.run(trial)
            x = trial.suggest_float("x", 0.0, 1.0)
            for step in range(10):
                run.log_metrics({"m": step / 2}, step=step)
                threading.Event().wait(0.02)
            return x

        def tell(study, trial):  # in one write, for two threads tell
            os.write(1, f"{trial.number} {trial.value}\\n".encode())

        study = optuna.create_study(study_name=NAME)
        study.optimize(objective, 100_000, n_jobs=2, callbacks=[callback, tell])
        """,
        name,
    )
    script.wait_for("\n10 ")
    script.send(signal.SIGTERM)
    assert script.end() == -signal.SIGTERM, script.err
    assert script.err.count("left on disk") <= 1, script.err
    assert "Traceback" not in script.err, script.err
    assert command("sync").returncode == 0
    seen = _seen(name)
    done = dict(line.split() for line in script.out.splitlines())
    assert len(done) > 10
    for number, value in done.items():
        assert seen[number].points == {"m": _line(0, 10), "value": [(0, float(value))]}
    for number, run in seen.items():
        # A trial may end while the process is being ended: its run is first failed, then finished.
        assert run.status in ("FINISHED", "FAILED")
        assert run.status == "FINISHED" or run.is_told
        assert number in done or run.points.get("m", []) == _line(0, len(run.points.get("m", [])))


def test_sigterm_ends_a_process_whose_main_thread_stays_in_c_code(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import hashlib
        run = RunWriter(IAPMlflowClient(), NAME, run_name="open")
        run.log_metrics({"m": 0.5}, step=1)
        print("logged")
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2**31 - 1)
        """,
        name,
    )
    script.wait_for("logged")
    script.send(signal.SIGTERM)
    assert script.end() in (128 + signal.SIGTERM, -signal.SIGTERM), script.err
    assert _seen(name)["open"] == _Seen("FAILED", True, {"m": [(1, 0.5)]}, {})


def test_a_child_that_gets_sigterm_does_not_end_its_parent(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        run = RunWriter(IAPMlflowClient(), NAME, run_name="parent")
        for _ in range(50):
            pid = os.fork()
            if pid == 0:
                threading.Event().wait()
            os.kill(pid, signal.SIGTERM)
            assert os.waitpid(pid, 0)[1] == signal.SIGTERM
        run.finish()
        """,
        name,
    )
    assert script.end() == 0, script.err
    assert _seen(name)["parent"].status == "FINISHED"


def test_the_user_s_sigterm_handler_is_kept_and_called(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        def leave(number, frame):
            print("the user's")
            sys.exit(7)

        signal.signal(signal.SIGTERM, leave)
        run = RunWriter(IAPMlflowClient(), NAME, run_name="open")
        run.log_metrics({"m": 0.0})
        print("logged")
        while True:
            threading.Event().wait(1.0)
        """,
        name,
    )
    script.wait_for("logged")
    script.send(signal.SIGTERM)
    assert script.end() == 7, script.err
    assert "the user's" in script.out
    assert _seen(name)["open"] == _Seen("FAILED", True, {"m": [(0, 0.0)]}, {})


@pytest.mark.slow
def test_a_second_sigterm_kills_at_once_and_everything_stays_on_disk(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    cloud.fault("answer", status=503, times=0)
    script = start(
        """
        run = RunWriter(IAPMlflowClient(max_attempts=1), NAME, run_name="open")
        run.log_metrics({"m": 0.0})
        print("logged")
        while True:
            threading.Event().wait(1.0)
        """,
        name,
    )
    script.wait_for("logged")
    script.send(signal.SIGTERM)
    script.wait_for("cannot be written to")
    script.send(signal.SIGTERM)
    assert script.end() == -signal.SIGTERM
    assert _LEFT.search(script.err) is None  # it was not waited for
    cloud.clear_faults()
    assert command("sync").returncode == 0
    assert _seen(name)["open"] == _Seen("FAILED", True, {"m": [(0, 0.0)]}, {})


# --- fork, spawn, pickle -----------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("forks", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_forks_under_load_neither_lose_nor_duplicate_records_and_never_deadlock(
    forks: int, cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        fork = multiprocessing.get_context("fork")
        forks = int(sys.argv[2])
        client = IAPMlflowClient()
        shared = RunWriter(client, NAME, run_name="shared")
        is_over = threading.Event()
        logged = [0, 0]

        def load(number):
            # A run that ends is sent at once, so a request is under way at most forks.
            while not is_over.is_set():
                run = RunWriter(client, NAME, run_name=f"load {number} {logged[number]}")
                run.log_metrics({"m": 0.5}, step=1)
                run.finish()
                logged[number] += 1
                is_over.wait(0.2)

        def child(number):
            own = RunWriter(client, NAME, run_name=f"child {number}")
            for step in range(20):
                own.log_metrics({"m": step / 2}, step=step)
                shared.log_metrics({f"child {number}": step / 2}, step=step)
            own.finish()

        threads = [threading.Thread(target=load, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        shared.run_id()
        children, forked = [], []
        for number in range(forks):
            # Those that end by sys.exit come first: it would join multiprocessing's, not theirs.
            if number >= forks // 3 and number % 2:
                # Ends by os._exit, behind multiprocessing's finalizers.
                children.append(fork.Process(target=child, args=(number,)))
                children[-1].start()
            else:
                pid = os.fork()
                if pid == 0:
                    child(number)
                    if number < forks // 3:
                        sys.exit(0)
                    os._exit(0)  # delivers nothing: its parent does, at its end
                forked.append(pid)
            for step in range(number * 10, number * 10 + 10):
                shared.log_metrics({"parent": step / 2}, step=step)
            is_over.wait(0.02)
        for each in children:
            each.join()
        statuses = [each.exitcode for each in children]
        statuses += [os.waitpid(pid, 0)[1] for pid in forked]
        is_over.set()
        for thread in threads:
            thread.join()
        shared.finish()
        print(set(statuses), *logged)
        """,
        *(name, str(forks)),
    )
    # The server may be too slow to accept everything from 30 processes before they end. Each then
    # waits for up to 30 s at its exit, and their parent for up to 30 s more.
    assert script.end(2 * DEADLINE) == 0, script.err
    statuses, *logged = script.out.split()
    assert statuses == "{0}"
    wait_until(lambda: command("sync").returncode == 0, "what they left is sent", DEADLINE)
    seen = _seen(name)
    of_children = {f"child {number}": _line(0, 20) for number in range(forks)}
    assert seen.pop("shared") == _Seen(
        "FINISHED", False, {"parent": _line(0, forks * 10), **of_children}, {}
    )
    for number in range(forks):
        run = _Seen("FINISHED", False, {"m": _line(0, 20)}, {})
        assert seen.pop(f"child {number}") == run
    loads = {f"load {n} {i}" for n, count in enumerate(logged) for i in range(int(count))}
    assert seen.keys() == loads
    assert all(run == ("FINISHED", False, {"m": [(1, 0.5)]}, {}) for run in seen.values())
    assert _files() == []


@pytest.mark.slow
def test_a_child_forked_while_the_sender_imports_a_module_can_deliver(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        importing = threading.Event()

        class SlowDisk:
            def find_spec(self, name, path=None, target=None):
                if threading.current_thread().name == "mlflow-iap-sender":
                    importing.set()
                    threading.Event().wait(0.1)

        sys.meta_path.insert(0, SlowDisk())
        client = IAPMlflowClient()
        run = RunWriter(client, NAME, run_name="parent")
        run.finish()
        importing.wait(2.0)

        def child():
            RunWriter(client, NAME, run_name="child").finish()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        """,
        name,
    )
    assert script.end() == 0, script.err
    assert "left on disk" not in script.err, script.err
    assert {run.status for run in _seen(name).values()} == {"FINISHED"}
    assert _seen(name).keys() == {"parent", "child"}


@pytest.mark.slow
def test_a_child_forked_while_a_thread_starts_runs_can_log_to_them(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        """
        import pickle
        fork = multiprocessing.get_context("fork")
        client = IAPMlflowClient()
        origin = RunWriter(client, NAME, run_name="shared")
        handle = origin

        def replace():
            global handle
            for _ in range(100):  # a copy finds its outbox at its first record
                handle = pickle.loads(pickle.dumps(origin))
                handle.log_metrics({"thread": 0.0}, timestamp=1)

        def child(number):
            handle.log_metrics({"m": number / 2}, step=number)

        thread = threading.Thread(target=replace)
        thread.start()
        children = [fork.Process(target=child, args=(number,)) for number in range(6)]
        for each in children:
            each.start()
        thread.join()
        for each in children:
            each.join(30.0)
            if each.exitcode is None:
                print("hangs")
                each.kill()
        origin.finish()
        """,
        name,
    )
    assert script.end() == 0, script.err
    assert "left on disk" not in script.err, script.err
    assert script.out == ""
    seen = _seen(name)["shared"]
    assert seen.points == {"m": _line(0, 6), "thread": [(0, 0.0)]}
    assert seen.status == "FINISHED"


_WORK = """
def work(run, callback, number):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run.log_metrics({"m": number / 2}, step=number)

    def objective(trial):
        x = trial.suggest_float("x", 0.0, 1.0)
        callback.run(trial).log_metrics({"m": 0.0})
        return x

    study = optuna.create_study(study_name=f"{NAME} {number}")
    study.optimize(objective, 3, callbacks=[callback])
    return [trial.value for trial in study.trials]

if __name__ == "__main__":
    client = IAPMlflowClient()
    run = RunWriter(client, NAME, run_name="shared")  # which the server does not know yet
    callback = IAPMLflowCallback()
    jobs = [(run, callback, number) for number in range(4)]
"""
_WAYS_TO_WORK = {
    "spawn": """
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        values = pool.starmap(work, jobs)
    """,
    "pool of forks": """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        values = pool.starmap(work, jobs)
    """,
    "executor of forks": """
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        values = list(pool.map(work, *zip(*jobs)))
    """,
    "joblib loky": """
    from joblib import Parallel, delayed
    values = Parallel(n_jobs=2)(delayed(work)(*job) for job in jobs)
    """,
    "joblib multiprocessing": """
    from joblib import Parallel, delayed
    values = Parallel(n_jobs=2, backend="multiprocessing")(delayed(work)(*job) for job in jobs)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        *("spawn", "pool of forks"),
        pytest.param("joblib loky", marks=pytest.mark.slow),
        pytest.param("executor of forks", marks=pytest.mark.soak),
        pytest.param("joblib multiprocessing", marks=pytest.mark.soak),
    ],
)
def test_workers_with_callbacks_and_handles_neither_lose_nor_duplicate_records(
    way: str, cloud: LocalCloud, start: Start, name: str
) -> None:
    script = start(
        f"{_WORK}{_WAYS_TO_WORK[way]}\n    run.finish()\n    print(*sum(values, []))", name
    )
    assert script.end() == 0, script.err
    assert "left on disk" not in script.err, script.err
    assert "Traceback" not in script.err, script.err
    assert command("sync").returncode == 0
    assert _seen(name) == {"shared": _Seen("FINISHED", False, {"m": _line(0, 4)}, {})}
    values = [float(value) for value in script.out.split()]
    for number in range(4):
        seen = _seen(f"{name} {number}")
        assert seen == {
            str(trial): _Seen(
                "FINISHED",
                False,
                {"m": [(0, 0.0)], "value": [(0, value)]},
                {"x": str(value)},
            )
            for trial, value in enumerate(values[number * 3 : number * 3 + 3])
        }
    assert _files() == []


@pytest.mark.slow
def test_workers_on_the_same_study_create_one_run_for_each_trial(
    cloud: LocalCloud, start: Start, name: str, tmp_path: Path
) -> None:
    script = start(
        """
        import optuna
        from joblib import Parallel, delayed

        def work(storage, callback):
            study = optuna.load_study(study_name=NAME, storage=storage)
            study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), 4,
                callbacks=[callback])

        if __name__ == "__main__":
            study = optuna.create_study(study_name=NAME, storage=sys.argv[2])
            callback = IAPMLflowCallback()
            Parallel(n_jobs=2)(delayed(work)(sys.argv[2], callback) for _ in range(3))
            for trial in study.trials:
                print(trial.number, trial.value)
        """,
        *(name, f"sqlite:///{tmp_path}/study.db"),
    )
    assert script.end() == 0, script.err
    values = dict(line.split() for line in script.out.splitlines())
    assert len(values) == 12
    assert _seen(name) == {
        number: _Seen("FINISHED", False, {"value": [(0, float(value))]}, {"x": value})
        for number, value in values.items()
    }
    # How joblib ends its workers decides whether they have time to delete their journals.
    wait_until(lambda: _waiting() == 0, "all records are settled")


@pytest.mark.slow
def test_sync_delivers_the_records_of_a_pool_terminated_in_an_outage(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    cloud.fault("answer", status=503, times=0)
    script = start(
        """
        def work(number):
            run = RunWriter(IAPMlflowClient(max_attempts=1), NAME, run_name=str(number))
            run.log_metrics({"m": number / 2}, step=number)
            run.finish()

        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(work, range(4), chunksize=1)
        """,
        name,
    )
    assert script.end() == 0, script.err
    assert _waiting() == 12
    cloud.clear_faults()
    assert command("sync").returncode == 0
    assert _seen(name) == {
        str(number): _Seen("FINISHED", False, {"m": [(number, number / 2)]}, {})
        for number in range(4)
    }


# --- the disk ----------------------------------------------------------------------------------

_TRAINING = """
import lightgbm as lgb, numpy as np
rng = np.random.default_rng(0)
data = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
callback = IAPLightGBMCallback(experiment_name=NAME, run_name="trained", tags={"t": "x" * 5000})
kept = {}
lgb.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 500,
    valid_sets=[data], callbacks=[lgb.record_evaluation(kept), callback])
print(*kept["training"]["binary_logloss"])
"""


@pytest.mark.parametrize(
    "kilobytes", [16, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 64))]
)
def test_training_on_a_full_disk_succeeds_with_a_warning_and_is_delivered(
    kilobytes: int, cloud: LocalCloud, start: Start, name: str, tmp_path: Path
) -> None:
    if kilobytes == 0:
        too_long = str(tmp_path.joinpath(*["no folder"] * 500))
        script = start(_TRAINING, name, MLFLOW_IAP_OUTBOX=too_long)
    else:
        size = kilobytes * 1024
        limit = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""
        script = start(limit + _TRAINING, name)
    assert script.end() == 0, script.err
    # The warning comes from the intake, the database, or both.
    assert script.err.count("kept in memory") in (1, 2), script.err
    curve = [(step, float(value)) for step, value in enumerate(script.out.split())]
    assert len(curve) == 500
    run = _seen(name)["trained"]
    assert run.status == "FINISHED"
    seconds = run.points.pop("seconds_per_iteration")
    assert [step for step, _ in seconds] == list(range(1, 500))
    best = min(curve, key=lambda point: point[1])
    assert run.points == {
        "training-binary_logloss": curve,
        "best-training-binary_logloss": [best],
        "stopped_iteration": [(499, 500.0)],
    }


# --- what MLflow refuses -----------------------------------------------------------------------


@pytest.mark.slow
def test_runs_of_a_deleted_experiment_are_refused_and_sent_after_it_is_restored(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    client = IAPMlflowClient()
    experiment_id = client.create_experiment(name)
    other = f"{name} other"
    client.create_experiment(other)
    cloud.fault("answer", status=503, times=0)
    script = start(
        """
        client = IAPMlflowClient(max_attempts=1)
        for experiment in (NAME, f"{NAME} other"):
            run = RunWriter(client, experiment, run_name="a", tags={"t": "u"})
            for step in range(5):
                run.log_metrics({"m": step / 2}, step=step)
            run.log_params({"p": 1})
            run.finish("KILLED")
        """,
        name,
    )
    assert script.end() == 0, script.err
    cloud.clear_faults()
    client.delete_experiment(experiment_id)

    done = command("sync")
    told = done.stdout + done.stderr
    assert re.search(r"must be in the 'active' state", told), told
    expected = {"a": _Seen("KILLED", False, {"m": _line(0, 5)}, {"p": "1"})}
    assert _seen(other) == expected
    status = command("status").stdout
    assert "0 records" in status
    assert re.search(r"refused +8 x .*'active' state", status), status

    client.restore_experiment(experiment_id)
    again = command("sync", "--refused")
    assert again.returncode == 0, again.stdout
    assert _seen(name) == expected
    assert _seen(other) == expected
    assert "No records are waiting" in command("status").stdout
    assert _files() == []
