"""Forms of Optuna studies: each runs, raises and warns the same with the callback."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import (
    BruteForceSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.terminator import (
    StaticErrorEvaluator,
    Terminator,
    TerminatorCallback,
    report_cross_validation_scores,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.optuna.trial_run import INTERMEDIATE, STATUS, metric_names
from mlflow_iap_callbacks.tags import STUDY_MARK
from optuna_helpers import TRIAL_TAG

_Objective = Callable[[optuna.Trial], Any]
_FORMS: dict[str, Callable[[Studies], None]] = {}
_SLOW = ("garbage collection", "pruned by Wilcoxon", "stored in SQLite", "sampled by quasi-random")
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Studies:
    """The studies of a form, and the callbacks of each call of ``optimize``.

    Args:
        folder: for storages.
        given: the callback under test; None to run without it.
        is_first: whether it comes before the form's own ones.
    """

    def __init__(
        self, folder: Path, given: IAPMLflowCallback | None = None, *, is_first: bool = True
    ) -> None:
        self.folder, self._given, self._is_first = folder, given, is_first
        self.found: list[optuna.Study] = []

    def new(self, *directions: Any, **options: Any) -> optuna.Study:
        """A study with a name of its own."""
        options = {"sampler": RandomSampler(seed=0), **options}
        if directions:
            options["directions"] = directions
        return self.keep(optuna.create_study(study_name=f"study {len(self.found)}", **options))

    def keep(self, study: optuna.Study) -> optuna.Study:
        self.found.append(study)
        return study

    def callbacks(self, *own: Any) -> list[Any] | None:
        if self._given is None:
            return [*own] or None
        return [self._given, *own] if self._is_first else [*own, self._given]

    def optimize(
        self, study: optuna.Study, objective: _Objective, n_trials: int | None = 4, **options: Any
    ) -> None:
        own = options.pop("callbacks", ())
        study.optimize(objective, n_trials, callbacks=self.callbacks(*own), **options)


def _form(function: Callable[[Studies], None]) -> Callable[[Studies], None]:
    _FORMS[function.__name__.removeprefix("_").replace("_", " ")] = function
    return function


def _vary(name: str, function: Callable[..., None], **options: Any) -> None:
    _FORMS[name] = partial(function, **options)


# objectives


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def _everything(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 1e-3, 1.0, log=True)
    number = trial.suggest_int("number", 1, 9, step=2)
    kind = trial.suggest_categorical("kind", ["a", None, 2, 0.5, True])
    trial.set_user_attr("note", {"kind": kind, "list": [1, 2]})
    for step in range(3):
        trial.report(x + step, step)
    return x * number


def _mixed(trial: optuna.Trial) -> float | None:
    x = _x(trial)
    if trial.number == 1:
        raise optuna.TrialPruned
    if trial.number == 2:
        raise ValueError("of the user's")
    return (x, x, x, float("nan"), float("inf"), None)[trial.number]


def _returning(value: Any, trial: optuna.Trial) -> Any:
    _x(trial)
    return value


def _raising(error: type[BaseException], trial: optuna.Trial) -> float:
    if trial.number == 1:
        raise error
    return _x(trial)


# optimize


def _run(
    studies: Studies,
    objective: _Objective = _x,
    directions: tuple[str, ...] = (),
    study: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    studies.optimize(studies.new(*directions, **(study or {})), objective, **options)


_vary("optimize", _run)
_vary("each kind of param", _run, objective=_everything)
_vary("trials that fail and are pruned", _run, objective=_mixed, n_trials=6, catch=ValueError)
_vary("several kinds caught", _run, objective=_mixed, n_trials=6, catch=(KeyError, ValueError))
_vary("an exception that is not caught", _run, objective=_mixed)
_vary("an interrupt by the user", _run, objective=partial(_raising, KeyboardInterrupt))
_vary("an exit in the objective", _run, objective=partial(_raising, SystemExit))
_vary("no trials", _run, n_trials=0)
_vary("a timeout that is over", _run, timeout=0.0)
_vary("threads", _run, objective=lambda trial: float(trial.number), n_trials=8, n_jobs=4)
_vary("garbage collection", _run, gc_after_trial=True)
_vary("a negative number of threads", _run, objective=lambda t: float(t.number), n_jobs=-1)
_vary("no params", _run, objective=lambda trial: 1)
_vary("something caught that is no exception", _run, n_trials=1, catch="no exception")
for _name, _value in {
    "a text": "0.5",
    "a word": "half",
    "a list": [0.5],
    "two values": (0.5, 0.25),
    "a complex value": 1j,
    "nothing": None,
    "infinity": math.inf,
    "a large number": 10**400,
}.items():
    _vary(f"an objective that returns {_name}", _run, objective=partial(_returning, _value))

_MULTIPLE = ("minimize", "maximize")
_vary("two objectives", _run, objective=partial(_returning, (0.5, 1)), directions=_MULTIPLE)
_vary("too few values", _run, objective=partial(_returning, (0.5,)), directions=_MULTIPLE)
_vary("NaN in values", _run, objective=partial(_returning, (0.5, math.nan)), directions=_MULTIPLE)
_vary("maximized", _run, directions=("maximize",))


@_form
def _an_objective_that_reports_with_two_values(studies: Studies) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        trial.report(0.5, 0)
        return 0.5, 0.5

    studies.optimize(studies.new(*_MULTIPLE), objective)


@_form
def _constraints(studies: Studies) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = _x(trial)
        trial.set_constraint("c", x - 0.5)
        return x

    studies.optimize(studies.new(), objective)


@_form
def _constraints_of_a_sampler(studies: Studies) -> None:
    sampler = TPESampler(seed=0, constraints_func=lambda trial: (trial.params["x"] - 0.5,))
    studies.optimize(studies.new(sampler=sampler), _x)


@_form
def _a_stop_by_the_objective(studies: Studies) -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            trial.study.stop()
        return _x(trial)

    studies.optimize(studies.new(), objective)


@_form
def _a_stop_by_a_callback(studies: Studies) -> None:
    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.number == 1:
            study.stop()

    studies.optimize(studies.new(), _x, callbacks=[stop])


@_form
def _a_callback_that_fails(studies: Studies) -> None:
    def fail(study: optuna.Study, trial: FrozenTrial) -> None:
        raise ZeroDivisionError("of the user's")

    studies.optimize(studies.new(), _x, callbacks=[fail])


@_form
def _a_callback_that_changes_its_trial(studies: Studies) -> None:
    def change(study: optuna.Study, trial: FrozenTrial) -> None:
        study.set_user_attr(f"after {trial.number}", trial.value)
        trial.params.clear()
        trial.user_attrs["changed"] = object()

    studies.optimize(studies.new(), _x, callbacks=[change])


@_form
def _a_callback_that_enqueues(studies: Studies) -> None:
    def enqueue(study: optuna.Study, trial: FrozenTrial) -> None:
        study.enqueue_trial({"x": 0.25}, user_attrs={"of": trial.number}, skip_if_exists=True)

    studies.optimize(studies.new(), _x, callbacks=[enqueue])


@_form
def _a_limit_of_trials(studies: Studies) -> None:
    limits = [MaxTrialsCallback(2, (TrialState.COMPLETE,)), MaxTrialsCallback(9, None)]
    study = studies.new()
    studies.optimize(study, _x, None, callbacks=limits)
    studies.optimize(study, _x, callbacks=limits)


@_form
def _a_terminator(studies: Studies) -> None:
    def objective(trial: optuna.Trial) -> float:
        report_cross_validation_scores(trial, [0.5, 0.6])
        return _x(trial)

    terminator = Terminator(error_evaluator=StaticErrorEvaluator(0.1), min_n_trials=2)
    studies.optimize(studies.new(), objective, callbacks=[TerminatorCallback(terminator)])


@_form
def _optimize_inside_of_optimize(studies: Studies) -> None:
    def objective(trial: optuna.Trial) -> float:
        inner = studies.new()
        studies.optimize(inner, _x, 2)
        return inner.best_value

    studies.optimize(studies.new(), objective, 2)


@_form
def _the_same_study_inside_of_itself(studies: Studies) -> None:
    study = studies.new()

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            study.optimize(_x, 1, callbacks=studies.callbacks())
        return _x(trial)

    studies.optimize(study, objective, 2)


@_form
def _a_study_that_is_optimized_twice(studies: Studies) -> None:
    study = studies.new()
    studies.optimize(study, _x, 2)
    studies.optimize(study, _everything, 2)


@_form
def _a_study_whose_attributes_are_odd(studies: Studies) -> None:
    study = studies.new()
    study.set_user_attr("object", object)
    study.set_user_attr("a/b c", {"é": [None]})
    study.set_user_attr("x" * 400, "y" * 9000)
    studies.optimize(study, _x, 2)


@_form
def _metric_names(studies: Studies) -> None:
    study = studies.new(*_MULTIPLE)
    study.set_metric_names(["a loss", "größe/x"])
    studies.optimize(study, partial(_returning, (0.5, 1)))


# other ways of adding trials


@_form
def _enqueued_trials(studies: Studies) -> None:
    study = studies.new()
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 7.0}, user_attrs={"why": "out of range"})
    study.enqueue_trial({"other": 1})
    studies.optimize(study, _x)


@_form
def _added_trials(studies: Studies) -> None:
    study, other = studies.new(), studies.new()
    space: Any = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for state in (TrialState.FAIL, TrialState.PRUNED, TrialState.WAITING, TrialState.RUNNING):
        study.add_trial(create_trial(state=state))
    study.add_trial(create_trial(params={"x": 0.5}, distributions=space, value=0.5))
    studies.optimize(study, _x, 2)
    other.add_trials(study.trials)
    studies.optimize(other, _x, 1)


@_form
def _ask_and_tell(studies: Studies) -> None:
    study = studies.new()
    space: Any = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    study.tell(study.ask(space), 0.5)
    trial = study.ask()
    study.tell(trial, state=TrialState.PRUNED)
    study.tell(trial, 0.5, skip_if_finished=True)
    study.tell(study.ask().number, state=TrialState.FAIL)
    study.ask()
    studies.optimize(study, _x, 2)
    study.tell(trial, 0.5)


@_form
def _a_trial_told_by_its_objective(studies: Studies) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.study.tell(trial, _x(trial))
        return 0.5

    studies.optimize(studies.new(), objective)


@_form
def _attributes_set_after_the_end(studies: Studies) -> None:
    held: list[optuna.Trial] = []

    def objective(trial: optuna.Trial) -> float:
        held.append(trial)
        return _x(trial)

    def change(study: optuna.Study, trial: FrozenTrial) -> None:
        held[-1].set_user_attr("late", 1)

    studies.optimize(studies.new(), objective, callbacks=[change])


# samplers and pruners

_SPACE: Any = {"x": [0.0, 0.5, 1.0]}
_SAMPLERS: dict[str, Callable[[], Any]] = {
    "random": lambda: RandomSampler(seed=0),
    "TPE": lambda: TPESampler(seed=0, n_startup_trials=2),
    "multivariate TPE": lambda: TPESampler(
        seed=0, n_startup_trials=2, multivariate=True, group=True, constant_liar=True
    ),
    "grid": lambda: GridSampler(_SPACE, seed=0),
    "brute force": lambda: BruteForceSampler(seed=0),
    "NSGA-II": lambda: NSGAIISampler(population_size=2, seed=0),
    "NSGA-III": lambda: NSGAIIISampler(population_size=2, seed=0),
    "partly fixed": lambda: PartialFixedSampler({"x": 0.5}, RandomSampler(seed=0)),
    "quasi-random": lambda: QMCSampler(seed=0),
}


def _sampled(studies: Studies, sampler: Callable[[], Any]) -> None:
    studies.optimize(
        studies.new(sampler=sampler()),
        lambda trial: trial.suggest_float("x", 0.0, 1.0, step=0.5) + trial.suggest_int("n", 0, 0),
        6,
    )


for _name, _sampler in _SAMPLERS.items():
    _vary(f"sampled by {_name}", _sampled, sampler=_sampler)

_PRUNERS: dict[str, Callable[[], Any]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=1),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=1),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=4),
    "patience": lambda: optuna.pruners.PatientPruner(None, patience=1),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=1.0),
    "Wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.4),
}


def _pruned(studies: Studies, pruner: Callable[[], Any]) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = _x(trial)
        for step in range(4):
            trial.report(x * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    studies.optimize(studies.new(pruner=pruner()), objective, 8)


for _name, _pruner in _PRUNERS.items():
    _vary(f"pruned by {_name}", _pruned, pruner=_pruner)


# storages


def _stored(studies: Studies, storage: Callable[[Path], Any]) -> None:
    opened = storage(studies.folder)
    study = studies.new(storage=opened)
    studies.optimize(study, _everything, 2)
    again = optuna.load_study(study_name=study.study_name, storage=opened, sampler=RandomSampler(1))
    studies.optimize(again, _mixed, 2, catch=ValueError)


_STORAGES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda folder: get_storage(None),
    "a journal": lambda folder: JournalStorage(JournalFileBackend(str(folder / "study.log"))),
    "SQLite": lambda folder: f"sqlite:///{folder / 'study.db'}",
}
for _name, _storage in _STORAGES.items():
    _vary(f"stored in {_name}", _stored, storage=_storage)


@_form
def _copied_studies(studies: Studies) -> None:
    study = studies.new()
    storage = study._storage
    studies.optimize(study, _x, 2)
    optuna.copy_study(
        from_study_name=study.study_name,
        from_storage=storage,
        to_storage=storage,
        to_study_name="copied",
    )
    copied = studies.keep(optuna.load_study(study_name="copied", storage=storage))
    copied.sampler = RandomSampler(seed=1)
    for each in (study, copied):
        studies.optimize(each, _x, 2)


@_form
def _a_study_that_is_pickled(studies: Studies) -> None:
    study = studies.new()
    studies.optimize(study, _x, 2)
    for again in (pickle.loads(pickle.dumps(study)), copy.deepcopy(study)):
        again.sampler = RandomSampler(seed=1)
        studies.optimize(again, _x, 1)


@_form
def _a_study_that_is_deleted_meanwhile(studies: Studies) -> None:
    study = studies.new()

    def delete(study: optuna.Study, trial: FrozenTrial) -> None:
        optuna.delete_study(study_name=study.study_name, storage=study._storage)

    try:
        studies.optimize(study, _x, callbacks=[delete])
    finally:
        studies.found.remove(study)


class _View(optuna.Study):
    """A subclass that hides the best trial."""

    @property
    def best_trial(self) -> FrozenTrial:
        raise RuntimeError("not in this view")


@_form
def _a_subclass_of_a_study(studies: Studies) -> None:
    study = studies.new()
    view = _View(study.study_name, study._storage, sampler=RandomSampler(seed=0))
    studies.optimize(view, _x, 2)


def _shown(study: optuna.Study) -> list[Any]:
    """What a study has, without times and objects."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    shown: list[Any] = [{name: value for name, value in attrs.items() if name != STUDY_MARK}]
    for trial in study.get_trials(deepcopy=False):
        shown.append(
            (
                *(trial.number, trial.state, trial.values, trial.params, trial.distributions),
                *(trial.intermediate_values, sorted(trial.user_attrs), trial.system_attrs),
            )
        )
    return [*map(repr, shown), sorted(study.user_attrs)]


def _params() -> list[Any]:
    marks = dict.fromkeys(_SLOW, pytest.mark.slow)
    return [pytest.param(form, marks=marks.get(name, ())) for name, form in _FORMS.items()]


def _outcome(form: Callable[[Studies], None], studies: Studies) -> list[Any]:
    """What a form's studies have, what it raised, and the warnings it caused."""
    error = None
    studies.folder.mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            form(studies)
        except BaseException as raised:  # noqa: BLE001 - it is compared
            error = (type(raised), str(raised))
    # What other tests left may be garbage by now, and warn too.
    own = [each for each in caught if each.category is not ResourceWarning]
    said = sorted((each.category.__name__, str(each.message)) for each in own)
    return [[_shown(study) for study in studies.found], error, said]


def _is_same(run: FakeRun, trial: FrozenTrial, names: Sequence[str]) -> bool:
    """Whether a run has what the storage has of its trial."""
    values = dict(zip(names, trial.values or (), strict=False))
    return (
        run.status == STATUS[trial.state.name]
        and run.params == {name: str(value) for name, value in trial.params.items()}
        and {name: value for name, _, _, value in run.points if name in names} == values
        and run.curve(INTERMEDIATE) == sorted(trial.intermediate_values.items())
    )


@pytest.mark.parametrize(
    "is_first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["first", "last"]
)
@pytest.mark.parametrize("form", _params(), ids=_FORMS)
def test_a_form_is_the_same_with_the_callback_and_each_trial_has_one_run(
    delivery: InlineDelivery,
    tmp_path: Path,
    form: Callable[[Studies], None],
    is_first: bool,
) -> None:
    bare = _outcome(form, Studies(tmp_path / "bare"))
    callback = IAPMLflowCallback(client=delivery.client, study_run=False)
    studies = Studies(tmp_path / "logged", callback, is_first=is_first)
    assert _outcome(form, studies) == bare
    for study in studies.found:
        callback.sync(study)
    runs = delivery.runs()
    for study in studies.found:
        names = metric_names(None, study)
        for trial in study.get_trials(deepcopy=False, states=_ENDED):
            (run,) = [
                run
                for run in runs
                if delivery.server.experiments[run.experiment_id].name == study.study_name
                and run.tags[TRIAL_TAG] == str(trial.number)
            ]
            assert _is_same(run, trial, names)
