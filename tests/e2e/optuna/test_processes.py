"""Sweeps of several processes on one storage: MLflow has the same trials as the storage."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from mlflow.entities import ViewType

import database_server
from database_server import MariaDB
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.outbox import journal_folder
from optuna_equality import assert_mlflow_equals_storage, is_of_a_study, runs_in
from scripts import DEADLINE, Start, command
from waiting import wait_until

IMPORTS = """
import itertools, multiprocessing, os, random, signal, sys, threading, time
import optuna
from mlflow_iap_callbacks import IAPMLflowCallback
optuna.logging.set_verbosity(optuna.logging.ERROR)

NAME, STORAGE = sys.argv[1:3]
fork = multiprocessing.get_context("fork")

def objective(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    trial.suggest_categorical("kind", ["a", None, 3])
    trial.set_user_attr("worker", os.getpid())
    for step in range(3):
        trial.report(x / (step + 1), step)
    threading.Event().wait(0.02)
    if trial.number % 5 == 1:
        raise optuna.TrialPruned
    if trial.number % 5 == 2:
        raise ValueError("odd")
    return x * x

def work(storage, trials, callback, name=NAME):
    study = optuna.load_study(study_name=name, storage=storage)
    study.optimize(objective, trials, callbacks=[callback], catch=ValueError)

def run_all(processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print(*(process.exitcode for process in processes))

def load(name, **options):
    return optuna.load_study(
        study_name=name, storage=optuna.storages.RDBStorage(STORAGE, **options))
"""


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    if not database_server.is_installed() and not os.environ.get("CI"):
        pytest.skip("Debian's mariadb-server is not installed")
    with MariaDB(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture
def storage(mariadb: MariaDB) -> str:
    """URL of a database with Optuna's tables, which several processes cannot create at once."""
    url = mariadb.new_database()
    optuna.storages.RDBStorage(url)
    return url


@pytest.fixture
def file_storage(tmp_path: Path) -> str:
    """URL of a file of SQLite with Optuna's tables: enough for two processes, and no server."""
    url = f"sqlite:///{tmp_path / 'study.db'}?timeout=60"
    optuna.storages.RDBStorage(url)
    return url


def _load(name: str, storage: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=storage)


_WAYS = {
    "a Dask cluster": """
        from dask.distributed import Client, LocalCluster
        with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
            client.gather([client.submit(work, STORAGE, 5, callback, pure=False) for _ in range(2)])
    """,
    "processes": """
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=work, args=(STORAGE, 3, callback)) for _ in range(4)]
        run_all(processes)
    """,
    "joblib's loky": """
        from joblib import Parallel, delayed
        Parallel(n_jobs=2)(delayed(work)(STORAGE, 5, callback) for _ in range(2))
    """,
    "Optuna's gRPC proxy": """
        import socket
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        served = optuna.storages.RDBStorage(STORAGE)
        threading.Thread(target=optuna.storages.run_grpc_proxy_server, args=(served,),
            kwargs={"host": "127.0.0.1", "port": port}, daemon=True).start()
        proxy = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)
        proxy.wait_server_ready(30)
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=work, args=(proxy, 5, callback)) for _ in range(2)]
        run_all(processes)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        "processes",
        "a Dask cluster",
        "joblib's loky",
        pytest.param("Optuna's gRPC proxy", marks=pytest.mark.soak),
    ],
)
def test_mlflow_has_the_same_trials_as_the_storage_of_a_sweep_with_several_workers(
    way: str, cloud: LocalCloud, start: Start, name: str, storage: str
) -> None:
    if "gRPC" in way and not hasattr(optuna.storages, "GrpcStorageProxy"):
        pytest.skip("before Optuna 4.2 there is none")
    script = start(
        f"""
if __name__ == "__main__":
    optuna.create_study(study_name=NAME, storage=STORAGE)
    callback = IAPMLflowCallback()
    if True:
{_WAYS[way]}
        """,
        *(name, storage),
    )
    assert script.end() == 0, script.err
    # Some clusters kill their workers at the end, and others do not wait for their end.
    wait_until(lambda: command("sync").returncode == 0, "nothing waits any more", 60.0)
    study = _load(name, storage)
    assert len(study.trials) >= 10
    assert_mlflow_equals_storage(study)


# --- several that begin at once ----------------------------------------------------------------

_AT_ONCE = """
count = int(sys.argv[3])
together = fork.Barrier(count)

def join_in():
    together.wait()
    study = optuna.create_study(study_name=NAME, storage=STORAGE, load_if_exists=True)
    study.optimize(objective, 2, callbacks=[IAPMLflowCallback()], catch=ValueError)

run_all([fork.Process(target=join_in) for _ in range(count)])
"""
_NO_EXPERIMENT = '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'


@pytest.mark.parametrize(
    ("kind", "count"),
    [("file_storage", 2), pytest.param("storage", 6, marks=pytest.mark.slow)],
    ids=["two", "six"],
)
def test_processes_that_start_a_study_at_once_share_one_experiment_and_one_parent_run(
    cloud: LocalCloud,
    start: Start,
    name: str,
    request: pytest.FixtureRequest,
    kind: str,
    count: int,
) -> None:
    storage = request.getfixturevalue(kind)
    cloud.fault("answer", path="experiments/get-by-name", status=404, body=_NO_EXPERIMENT, times=2)
    script = start(_AT_ONCE, name, storage, str(count))
    assert (script.end(), script.out.split()) == (0, ["0"] * count), script.err
    study = _load(name, storage)
    assert len(study.trials) == 2 * count
    assert_mlflow_equals_storage(study)


@pytest.mark.slow
def test_one_of_two_runs_that_are_created_for_a_study_at_once_remains(
    cloud: LocalCloud, start: Start, name: str, storage: str
) -> None:
    cloud.fault("answer", path="runs/search", status=200, body="{}", times=0)
    script = start(_AT_ONCE, name, storage, "2")

    def both_have_made_one() -> bool:
        return sum("runs/create" in seen.path for seen in cloud.requests) == 2

    wait_until(both_have_made_one, "both make one", DEADLINE)
    cloud.clear_faults()
    assert script.end() == 0, script.err
    _assert_one_stays(name, storage)


_LATE = """
from mlflow_iap_callbacks import IAPMlflowClient
names = sys.argv[3:]
looked, tags = fork.Semaphore(0), fork.Semaphore(0)
may_create, may_tag = fork.Event(), fork.Event()

class SlowToCreate(IAPMlflowClient):
    def create_run(self, *args, **kwargs):
        looked.release()
        may_create.wait()
        return super().create_run(*args, **kwargs)

class SlowToTag(IAPMlflowClient):
    def set_tag(self, run_id, key, value, *args, **kwargs):
        if key == "_mlflow_iap.agreed":
            tags.release()
            may_tag.wait()
        return super().set_tag(run_id, key, value, *args, **kwargs)

def take(semaphore):
    for _ in names:
        semaphore.acquire()

def work_on_all(client):
    callback = IAPMLflowCallback(client=client)
    for name in names:
        work(STORAGE, 2, callback, name)
    return callback
"""


@pytest.mark.slow
def test_a_run_that_is_created_late_for_a_study_is_deleted(
    cloud: LocalCloud, start: Start, name: str, storage: str
) -> None:
    optuna.create_study(study_name=name, storage=storage)
    script = start(
        _LATE
        + """
def quick():
    take(looked)
    assert work_on_all(None).flush(None)
    may_create.set()

run_all([fork.Process(target=work_on_all, args=(SlowToCreate(),)), fork.Process(target=quick)])
""",
        *(name, storage, name),
    )
    assert (script.end(), script.out) == (0, "0 0\n"), script.err
    _assert_one_stays(name, storage)


@pytest.mark.slow
def test_two_processes_that_choose_the_run_of_a_study_at_once_choose_the_same(
    cloud: LocalCloud, start: Start, name: str, storage: str
) -> None:
    names = [f"{name}-{number}" for number in range(4)]  # which one is chosen is random
    for each in names:
        optuna.create_study(study_name=each, storage=storage)
    script = start(
        _LATE
        + """
def first():
    take(looked)
    callback = work_on_all(SlowToTag())
    take(tags)  # it has decided, and the other has not made its own
    may_create.set()
    assert callback.flush(None)  # an exit would give up before the other allows it to tag

def second():
    callback = work_on_all(SlowToCreate())
    assert callback.flush(None)
    may_tag.set()

run_all([fork.Process(target=first), fork.Process(target=second)])
""",
        *(name, storage, *names),
    )
    assert (script.end(), script.out) == (0, "0 0\n"), script.err
    for each in names:
        _assert_one_stays(each, storage)


def _assert_one_stays(name: str, storage: str) -> None:
    made = [run for run in runs_in(name, ViewType.ALL) if is_of_a_study(run)]
    stages = [run.info.lifecycle_stage for run in made]
    # A process that is slow to see the other's run may have created a second one.
    assert (stages.count("active"), stages.count("deleted") > 0) == (1, True)
    assert_mlflow_equals_storage(_load(name, storage))


@pytest.mark.slow
def test_sync_delivers_a_study_whose_server_was_down_from_start_to_end(
    cloud: LocalCloud, start: Start, name: str, storage: str
) -> None:
    optuna.create_study(study_name=name, storage=storage)
    cloud.fault("answer", status=503, times=0)
    script = start(
        """
        from mlflow_iap_callbacks import IAPMlflowClient
        work(STORAGE, 10, IAPMLflowCallback(client=IAPMlflowClient(max_attempts=1)))
        """,
        name,
        storage,
    )
    assert script.end() == 0, script.err
    assert "`mlflow-iap sync` sends what is left" in script.err
    assert {trial.state.name for trial in _load(name, storage).trials} == {
        *("COMPLETE", "PRUNED", "FAIL")
    }
    cloud.clear_faults()
    assert command("sync").returncode == 0
    assert_mlflow_equals_storage(_load(name, storage))


# --- workers that are killed -------------------------------------------------------------------

# Sweeps whose worker is killed at a random moment, or after any append to its journal.
_RANDOM, _FORCED = 20, 9
_VICTIMS = """
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
optuna.create_study().optimize(objective, 1)  # imports what the first trial needs
append = RunWriter._append

def sweep(number, begun, appends):
    if number % 2:
        os.environ["MLFLOW_IAP_OUTBOX"] = sys.argv[6]  # as on another machine
    left = itertools.count(appends, -1)

    def append_or_die(run, kind, content):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        append(run, kind, content)

    RunWriter._append = append_or_die
    callback = IAPMLflowCallback()

    def watched(trial):
        if trial.number % 2:
            callback.run(trial).set_tags({"seen": "running"})
        if appends > 0:
            trial.suggest_float("x", -1.0, 1.0)
            trial.report(0.5, 1)
            raise ValueError("odd")
        return objective(trial)

    study = load(f"{NAME}-{number}", heartbeat_interval=1, grace_period=2)
    begun.set()
    study.optimize(watched, callbacks=[callback], catch=ValueError)

few = threading.Semaphore(4)  # so that they get on

def kill(process, begun, moment):
    with few:
        process.start()
        begun.wait()
        process.join(moment)
        process.kill()
        process.join()

rng = random.Random(int(sys.argv[3]))
killers = []
for number in range(int(sys.argv[4]) + int(sys.argv[5])):
    appends = number - int(sys.argv[4])
    moment = None if appends > 0 else rng.uniform(0.0, 1.5)
    begun = fork.Event()
    process = fork.Process(target=sweep, args=(number, begun, appends))
    killers.append(threading.Thread(target=kill, args=(process, begun, moment)))
for killer in killers:
    killer.start()
for killer in killers:
    killer.join()
"""
_FOLLOWING = """
def follow():
    callback = IAPMLflowCallback()
    studies = [load(f"{NAME}-{number}", heartbeat_interval=1, grace_period=2)
        for number in map(int, sys.argv[3:])]

    def running():
        return [(study, trial) for study in studies for trial in study.get_trials(deepcopy=False)
            if trial.state.name == "RUNNING"]

    ends = time.monotonic() + 8.0
    while running() and time.monotonic() < ends:
        for study in studies:
            optuna.storages.fail_stale_trials(study)
        threading.Event().wait(0.2)
    for study, trial in running():  # whose worker was killed before its first heartbeat
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    for study in studies:
        study.optimize(objective, 2, callbacks=[callback], catch=ValueError)

run_all([fork.Process(target=follow)])  # draws no pictures
"""


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_mlflow_has_the_same_trials_as_the_storage_of_killed_workers_after_both_syncs(
    cloud: LocalCloud,
    start: Start,
    name: str,
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = range(_RANDOM + _FORCED)
    for number in numbers:
        optuna.create_study(study_name=f"{name}-{number}", storage=storage)
    another = str(tmp_path / "another")
    amounts = map(str, (seed, _RANDOM, _FORCED))
    victims = start(_VICTIMS, name, storage, *amounts, another)
    assert victims.end() == 0, victims.err
    following = start(_FOLLOWING, name, storage, *map(str, numbers))
    assert (following.end(), following.out) == (0, "0\n"), following.err
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", another)
    synced = command("sync")
    assert synced.returncode == 0, synced.stdout
    assert "sent" in synced.stdout
    callback = IAPMLflowCallback()
    studies = [_load(f"{name}-{number}", storage) for number in numbers]
    assert sum(callback.sync(study) for study in studies) > 0
    assert callback.flush(DEADLINE)
    for study in studies:
        assert_mlflow_equals_storage(study)
    assert [callback.sync(study) for study in studies] == [0] * len(studies)
    assert not [journal for journal in journal_folder.survey() if not journal.is_live]


def test_a_retried_trial_has_its_own_run_that_names_the_first_one(
    cloud: LocalCloud, start: Start, name: str, file_storage: str
) -> None:
    storage = file_storage
    script = start(
        """
        import inspect, warnings
        warnings.simplefilter("ignore")
        study = optuna.create_study(study_name=NAME, storage=STORAGE)
        running = fork.Event()

        def hang():
            callback = IAPMLflowCallback()

            def objective(trial):
                trial.suggest_float("x", -1.0, 1.0)
                trial.set_user_attr("of", "the first")
                callback.run(trial).set_tags({"first": "yes"})
                running.set()
                threading.Event().wait()

            load(NAME, heartbeat_interval=1, grace_period=2).optimize(objective)

        process = fork.Process(target=hang)
        process.start()
        running.wait()
        process.kill()
        process.join()

        callback = IAPMLflowCallback()
        names = inspect.signature(optuna.storages.RDBStorage).parameters
        new = "heartbeat_stale_trial_callback"
        retry_class = getattr(optuna.storages, "RetryHeartbeatStaleTrialCallback", None)
        retry = (retry_class or optuna.storages.RetryFailedTrialCallback)()

        def log_and_retry(study, trial):
            callback.log_trial(study, trial)
            retry(study, trial)

        option = new if new in names else "failed_trial_callback"
        study = load(NAME, heartbeat_interval=1, grace_period=2, **{option: log_and_retry})
        while len(study.trials) == 1:
            optuna.storages.fail_stale_trials(study)
            threading.Event().wait(0.1)
        study.optimize(lambda trial: trial.suggest_float("x", -1.0, 1.0), 1, callbacks=[callback])
        """,
        *(name, storage),
    )
    assert script.end() == 0, script.err
    assert command("sync").returncode == 0
    study = _load(name, storage)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert_mlflow_equals_storage(study)
    first, second = (_tags_of(name, number) for number in range(2))
    assert first["of"] == second["of"] == "the first"
    assert first["first"] == "yes"
    assert "first" not in second
    assert "retry_of" not in first
    assert (second["retry_of"], second["retry_history"]) == ("0", "[0]")


@pytest.mark.soak
def test_a_sync_while_workers_finish_trials_creates_no_duplicates(
    cloud: LocalCloud, start: Start, name: str, storage: str
) -> None:
    script = start(
        """
        optuna.create_study(study_name=NAME, storage=STORAGE)
        over = fork.Event()

        def sync():
            callback, study, counts = IAPMLflowCallback(), load(NAME), []
            while not over.wait(0.05):
                counts.append(callback.sync(study))
            print(len(counts), sum(counts), file=sys.stderr)

        def join_in():
            work(STORAGE, 5, IAPMLflowCallback())

        syncing = fork.Process(target=sync)
        syncing.start()
        run_all([fork.Process(target=join_in) for _ in range(4)])
        over.set()
        syncing.join()
        """,
        *(name, storage),
    )
    assert script.end() == 0, script.err
    print(script.err)
    study = _load(name, storage)
    assert len(study.trials) == 20
    assert_mlflow_equals_storage(study)


def _tags_of(name: str, number: int) -> dict[str, str]:
    (run,) = [run for run in runs_in(name) if run.data.tags.get("mlflow_iap.trial") == str(number)]
    return dict(run.data.tags)
