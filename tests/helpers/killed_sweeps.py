"""Sweeps whose processes are killed at random moments, and the ordinary process after them."""

from __future__ import annotations

# A trial is in the storage for a while before the callback hears of it, as with other callbacks.
IMPORTS = """
import inspect, multiprocessing, os, random, signal, sys, threading, time
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from mlflow_iap_callbacks import IAPMLflowCallback
optuna.logging.set_verbosity(optuna.logging.ERROR)

NAME, STORAGE = sys.argv[1:3]
fork = multiprocessing.get_context("fork")

def pause(seconds):
    threading.Event().wait(seconds)

def storage():
    if "://" not in STORAGE:
        short = {"grace_period": 3}  # a killed process keeps the lock
        has_period = "grace_period" in inspect.signature(JournalFileSymlinkLock).parameters
        lock = JournalFileSymlinkLock(STORAGE, **(short if has_period else {}))
        return optuna.storages.JournalStorage(JournalFileBackend(STORAGE, lock))
    options = {"connect_args": {"timeout": 60}} if STORAGE.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(STORAGE, engine_kwargs=options)

def load():
    return optuna.create_study(study_name=NAME, storage=storage(), load_if_exists=True)

def objective(trial, callback, begun):
    begun.set()
    x = trial.suggest_float("x", -1.0, 1.0)
    trial.suggest_categorical("kind", ["a", None, 3])
    trial.set_user_attr("worker", os.getpid())
    if trial.number % 3 == 0:
        callback.run(trial).set_tags({"seen": "running"})
    for step in range(3):
        trial.report(x / (step + 1), step)
    pause(0.02)
    if trial.number % 5 == 1:
        raise optuna.TrialPruned
    if trial.number % 5 == 2:
        raise ValueError("odd")
    return x * x

def work(before_callback, begun):
    callback = IAPMLflowCallback()
    load().optimize(
        lambda trial: objective(trial, callback, begun),
        callbacks=[lambda study, trial: before_callback(trial), callback],
        catch=ValueError,
    )
"""

# Two at a time, each killed at a random moment: most of them soon, some after their comparison.
VICTIMS = """
rng = random.Random(int(sys.argv[3]))
kills = int(sys.argv[4])
load()
two = threading.Semaphore(2)

def sweep(begun):
    work(lambda trial: pause(0.05), begun)

def kill(moment):
    begun = fork.Event()
    process = fork.Process(target=sweep, args=(begun,))
    with two:
        process.start()
        begun.wait()
        process.join(moment)
        process.kill()
        process.join()

moments = [rng.uniform(0.0, 3.0) if number % 16 else 26.0 for number in range(1, kills + 1)]
killers = [threading.Thread(target=kill, args=(moment,)) for moment in moments]
for killer in killers:
    killer.start()
for killer in killers:
    killer.join()
"""

# Each kills itself between the storage's commit and the callback.
SELF_KILLED = """
def die(trial):
    if trial.number % 4 == 3:
        os.kill(os.getpid(), signal.SIGKILL)

load()
for _ in range(int(sys.argv[3])):
    process = fork.Process(target=work, args=(die, threading.Event()))
    process.start()
    process.join()
"""

# It may end soon, before it compares what was there when it began, or not.
ORDINARY = """
ends = time.monotonic() + float(sys.argv[3])

def stop_in_time(study, trial):
    if time.monotonic() > ends:
        study.stop()

callback = IAPMLflowCallback()
load().optimize(
    lambda trial: objective(trial, callback, threading.Event()),
    callbacks=[callback, stop_in_time],
    catch=ValueError,
)
"""
