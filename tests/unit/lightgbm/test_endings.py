"""When and how training ends: LightGBM itself trains, and a callback of the test watches it."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import lightgbm as lgb
import optuna
import pytest
from optuna_integration import LightGBMPruningCallback

from lightgbm_helpers import PARAMS, sets
from mlflow_iap_callbacks.lightgbm.endings import Ending, engine_of, status_of


class _Watch:
    """A callback that watches training with an ``Ending``."""

    def __init__(self) -> None:
        self.order = float("-inf")
        self.ended = 0
        self.ending: Any = None
        self.is_watched: list[bool] = []

    def __call__(self, env: Any) -> None:
        if self.ending is None:
            self.ending = Ending(env.model, engine_of(sys._getframe()), self._on_end)
        self.is_watched.append(self.ending.is_watched)

    def _on_end(self) -> None:
        self.ended += 1


def _train(watch: _Watch, rounds: int = 4, *others: Callable[..., Any], **options: Any) -> Any:
    train, valid = sets()
    options = {"valid_sets": [valid], "valid_names": ["valid"], **options}
    return lgb.train(PARAMS, train, rounds, callbacks=[watch, *others], **options)


def _stop(iteration: int, error: type[Exception] = ZeroDivisionError) -> Callable[..., None]:
    def stop(env: Any) -> None:
        if env.iteration == iteration:
            raise error

    return stop


def _fail(watch: _Watch, *others: Callable[..., Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        _train(watch, 4, *others)


@pytest.mark.parametrize("options", [{}, {"keep_training_booster": True}, {"valid_sets": []}])
def test_training_has_ended_when_it_returns(options: dict[str, Any]) -> None:
    watch = _Watch()
    _train(watch, **options)
    assert (watch.ended, watch.ending.has_returned) == (1, True)
    assert watch.is_watched == [True] * 4
    assert not watch.ending.is_watched
    assert watch.ending.time_ms > 0
    assert not watch.ending.is_pruned


def test_the_model_is_freed_when_training_has_ended() -> None:
    watch = _Watch()
    model = weakref.ref(_train(watch))
    gc.collect()
    assert watch.ended == 1
    assert model() is None


def test_early_stopping_returns_its_best_iteration() -> None:
    watch = _Watch()
    booster = _train(watch, 200, lgb.early_stopping(3, verbose=False))
    assert (watch.ended, watch.ending.has_returned) == (1, True)
    assert watch.ending.best_iteration == booster.best_iteration > 0


def test_training_without_early_stopping_has_no_best_iteration() -> None:
    watch = _Watch()
    _train(watch)
    assert watch.ending.best_iteration == 0


def test_a_cross_validation_that_stops_early_returns_its_best_iteration() -> None:
    watch = _Watch()
    callbacks: list[Any] = [watch, lgb.early_stopping(3, verbose=False)]
    result: Any = lgb.cv(PARAMS, sets()[0], 200, nfold=3, callbacks=callbacks)
    assert (watch.ended, watch.ending.has_returned) == (1, True)
    assert watch.ending.best_iteration == len(result["valid binary_logloss-mean"])


@pytest.mark.parametrize("iteration", [0, 2, 3])
def test_training_that_raises_has_not_returned(iteration: int) -> None:
    watch = _Watch()
    _fail(watch, _stop(iteration))
    gc.collect()
    assert (watch.ended, watch.ending.has_returned) == (1, False)
    assert not watch.ending.is_pruned


@pytest.fixture
def failed() -> Iterator[tuple[_Watch, list[Any]]]:
    """Failed training whose exception is kept, as a notebook keeps the last one."""
    watch = _Watch()
    kept: list[Any] = []
    try:
        _train(watch, 4, _stop(2))
    except ZeroDivisionError as error:
        kept.append(error)
    gc.collect()
    gc.disable()
    assert watch.ended == 0
    yield watch, kept
    gc.enable()


def test_training_that_raised_has_ended_when_the_exception_is_freed(
    failed: tuple[_Watch, list[Any]],
) -> None:
    watch, kept = failed
    del kept[:]
    gc.collect()
    assert (watch.ended, watch.ending.has_returned) == (1, False)


def test_an_ending_that_is_requested_early_is_read_once() -> None:
    watch = _Watch()
    with pytest.raises(ZeroDivisionError) as kept:
        _train(watch, 4, _stop(2))
    watch.ending.end()
    moment = watch.ending.time_ms
    assert (watch.ending.has_returned, watch.ending.is_watched) == (False, False)
    watch.ending.end()
    assert watch.ending.time_ms == moment
    assert kept


class _At(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == 2


def test_pruning_by_optuna_is_recognised_by_the_trial() -> None:
    watch = _Watch()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=_At())

    def objective(trial: optuna.Trial) -> float:
        prune = LightGBMPruningCallback(trial, "binary_logloss", valid_name="valid")
        _train(watch, 10, prune)
        return 0.0

    study.optimize(objective, 1)
    gc.collect()
    assert study.trials[0].state.name == "PRUNED"
    assert (watch.ended, watch.ending.has_returned, watch.ending.is_pruned) == (1, False, True)


def test_callbacks_given_as_a_set_that_is_kept_do_not_delay_the_end() -> None:
    watch = _Watch()
    kept = {watch}
    lgb.train(PARAMS, sets()[0], 3, callbacks=kept)  # type: ignore[arg-type]
    assert (watch.ended, watch.ending.has_returned) == (1, True)
    assert kept == {watch}


class _Pruned(optuna.TrialPruned):
    """A user's own reason to prune."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (optuna.TrialPruned, "KILLED"),
        (_Pruned, "KILLED"),
        (ZeroDivisionError, "FAILED"),
        (KeyboardInterrupt, "FAILED"),
        (SystemExit, "FAILED"),
    ],
)
@pytest.mark.parametrize("is_before", [False, True])
def test_the_exception_of_a_callback_decides_the_status(
    error: type[Exception], status: str, is_before: bool
) -> None:
    watch, stop = _Watch(), _stop(2, error)
    stop.before_iteration = is_before  # type: ignore[attr-defined]
    with pytest.raises(error):
        _train(watch, 4, stop)
    watch.ending.end()
    assert (watch.ending.has_returned, watch.ending.status_by_callback) == (False, status)


def test_early_stopping_is_not_an_error() -> None:
    watch = _Watch()
    _train(watch, 200, lgb.early_stopping(3, verbose=False))
    assert watch.ending.status_by_callback == "FINISHED"


def test_training_that_raises_with_a_best_iteration_has_not_returned() -> None:
    def remember(env: Any) -> None:
        env.model.best_iteration = env.iteration + 1

    watch = _Watch()
    _fail(watch, remember, _stop(2))
    gc.collect()
    assert watch.ending.best_iteration == 3
    assert not watch.ending.has_returned


@pytest.mark.parametrize("is_pruned", [True, False])
def test_pruning_by_a_metric_is_recognised_by_the_trial_of_the_objective(is_pruned: bool) -> None:
    watch = _Watch()

    def metric(*_: Any) -> Any:
        raise _Pruned if is_pruned else ZeroDivisionError

    def objective(_: optuna.Trial) -> float:
        calls = iter([("mine", 1.0, True)] * 2)
        _train(watch, 10, feval=lambda *given: next(calls, None) or metric(*given))
        return 0.0

    study = optuna.create_study()
    study.optimize(objective, 1, catch=(ZeroDivisionError,))
    watch.ending.end()
    assert study.trials[0].state.name == ("PRUNED" if is_pruned else "FAIL")
    assert watch.ending.status_by_callback is None
    assert watch.ending.is_pruned is is_pruned


def test_two_callbacks_both_notice_the_end() -> None:
    both = _Watch(), _Watch()
    _fail(both[0], both[1], _stop(2))
    gc.collect()
    assert [(each.ended, each.ending.status_by_callback) for each in both] == [(1, "FAILED")] * 2


def test_an_unknown_engine_is_not_watched_and_its_model_is_not_kept() -> None:
    booster = lgb.Booster(PARAMS, sets()[0])
    ending = Ending(booster, None, lambda: None)
    assert not ending.is_watched
    del booster
    gc.collect()
    ending.end()
    assert (ending.has_returned, ending.time_ms) == (False, 0)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ZeroDivisionError(), "FAILED"),
        (KeyboardInterrupt(), "FAILED"),
        (optuna.TrialPruned(), "KILLED"),
    ],
)
def test_the_status_of_a_run_that_ends_with_an_exception(error: BaseException, status: str) -> None:
    assert status_of(error) == status


# The end may be noticed in the middle of anything, because Python may free objects at any time.


def _module(name: str) -> ModuleType:
    """A module with this name, and with a function that drops its argument and calls ``drop``."""
    module = ModuleType(name)
    exec("def work(kept, drop):\n    del kept[:]\n    drop()\n", vars(module))
    return module


@pytest.mark.parametrize("name", ["delivery.sender", "delivery", "outbox.intake", "outbox"])
def test_the_end_of_training_is_not_logged_while_the_delivery_is_running(
    failed: tuple[_Watch, list[Any]], name: str
) -> None:
    watch, kept = failed
    _module(f"mlflow_iap_callbacks.{name}").work(kept, gc.collect)
    assert watch.ended == 0
    # The end is known by now, and is logged by what comes next: training, flush or the exit.
    assert not watch.ending.is_watched
    assert watch.ending.time_ms > 0


@pytest.mark.parametrize(
    "name", ["mlflow_iap_callbacks.lightgbm.callback", "mlflow_iap_callbacks", "outbox", "delivery"]
)
def test_the_end_of_training_is_logged_at_once_while_anything_else_is_running(
    failed: tuple[_Watch, list[Any]], name: str
) -> None:
    watch, kept = failed
    _module(name).work(kept, gc.collect)
    assert watch.ended == 1


def test_the_modules_that_must_not_be_interrupted_are_those_of_the_run_handle_and_its_journal(
    failed: tuple[_Watch, list[Any]],
) -> None:
    from mlflow_iap_callbacks.delivery.run import IAPRun
    from mlflow_iap_callbacks.delivery.run_writer import RunWriter
    from mlflow_iap_callbacks.outbox import Outbox
    from mlflow_iap_callbacks.outbox.intake import Intake

    watch, kept = failed
    frames: list[FrameType] = []
    outbox = Outbox(None, "http://server")
    run = RunWriter.__new__(RunWriter)
    run._run = outbox.begin("key", "id:0")

    def pack(message: object) -> Any:
        """Drop the exception in the middle of an append, as garbage collection may."""
        frames.append(sys._getframe())
        del kept[:]
        gc.collect()
        return whole(message)

    whole, outbox.intake._pack = outbox.intake._pack, pack
    run.log_metrics({"loss": 1.0})
    found = {frame.f_globals["__name__"] for frame in _stack(frames[0])}
    assert {IAPRun.__module__, Intake.__module__} <= found
    assert watch.ended == 0


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
