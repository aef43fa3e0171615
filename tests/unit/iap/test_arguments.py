"""Wrong arguments of all public classes: what is raised, and that nothing was done before."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import optuna
import pytest

import mlflow_iap_callbacks as public
from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.iap.arguments import check

# A type checker would find these calls wrong, too.
IAPAuth: Any = public.IAPAuth
IAPCredentials: Any = public.IAPCredentials
IAPLightGBMCallback: Any = public.IAPLightGBMCallback
IAPMLflowCallback: Any = public.IAPMLflowCallback
IAPMlflowClient: Any = public.IAPMlflowClient
IAPRun: Any = public.IAPRun

_ID = "0123456789abcdef" * 2
_URL = f"https://mlflow.example/#/experiments/1/runs/{_ID}"


def _run_entity() -> mlflow.entities.Run:
    info = mlflow.entities.RunInfo(_ID, "0", "user", "RUNNING", 0, None, "active")
    return mlflow.entities.Run(info, mlflow.entities.RunData())


def _train(callbacks: Any, engine: Callable[..., Any] = lgb.train) -> Any:
    data = lgb.Dataset(np.arange(60.0).reshape(30, 2), np.arange(30.0))
    params = {"verbosity": -1, "min_data_in_leaf": 1, "num_threads": 1}
    more = {"stratified": False, "nfold": 2} if engine is lgb.cv else {}
    return engine(params, data, 2, callbacks=callbacks, **more)


def _fit(callbacks: Any) -> None:
    estimator = lgb.LGBMRegressor(n_estimators=2, verbosity=-1, n_jobs=1)
    estimator.fit(np.arange(60.0).reshape(30, 2), np.arange(30.0), callbacks=callbacks)


def _optimize(callbacks: Any) -> None:
    optuna.create_study().optimize(lambda trial: 0.5, 1, callbacks=callbacks)


@pytest.fixture(scope="module")
def its() -> SimpleNamespace:
    """The objects that the calls use."""
    client: Any = FakeClient(FakeMlflow())
    study = optuna.create_study()
    return SimpleNamespace(
        client=client,
        study=study,
        trial=study.ask(),
        booster=_train(None),
        optuna=IAPMLflowCallback(client=client),
        lightgbm=IAPLightGBMCallback(client=client),
        run=IAPRun(_ID, client=client),
        active=mlflow.ActiveRun(_run_entity()),
    )


# Name, call, and words that its error contains.
_WRONG: list[tuple[str, Callable[[Any], Any], tuple[str, ...]]] = [
    (
        "the class in optimize",
        lambda its: _optimize([IAPMLflowCallback]),
        ("the class IAPMLflowCallback", "callbacks=[IAPMLflowCallback()]"),
    ),
    (
        "the class of the other library in optimize",
        lambda its: _optimize([IAPLightGBMCallback]),
        ("the class IAPLightGBMCallback", "callbacks=[IAPMLflowCallback()]"),
    ),
    (
        "the object of the other library in optimize",
        lambda its: _optimize([its.lightgbm]),
        ("not a callback for Optuna", "callbacks=[IAPMLflowCallback()]"),
    ),
    ("no list in optimize", lambda its: _optimize(its.optuna), ("callbacks=[callback]",)),
    (
        "the class in train",
        lambda its: _train([IAPLightGBMCallback]),
        ("the class IAPLightGBMCallback", "callbacks=[IAPLightGBMCallback()]"),
    ),
    (
        "the class in cv",
        lambda its: _train([IAPLightGBMCallback], lgb.cv),
        ("the class IAPLightGBMCallback", "callbacks=[IAPLightGBMCallback()]"),
    ),
    (
        "the class in fit",
        lambda its: _fit([IAPLightGBMCallback]),
        ("the class IAPLightGBMCallback", "callbacks=[IAPLightGBMCallback()]"),
    ),
    (
        "the class of the other library in train",
        lambda its: _train([IAPMLflowCallback]),
        ("the class IAPMLflowCallback", "callbacks=[IAPLightGBMCallback()]"),
    ),
    (
        "the object of the other library in train",
        lambda its: _train([its.optuna]),
        ("not a callback for LightGBM", "callbacks=[IAPLightGBMCallback()]"),
    ),
    ("no list in train", lambda its: _train(its.lightgbm), ("callbacks=[callback]",)),
    (
        "a server's URL as run",
        lambda its: IAPLightGBMCallback("https://mlflow.example"),
        ("run is 'https://mlflow.example'", "tracking_uri=URI"),
    ),
    (
        "a server's URL as run id",
        lambda its: IAPRun("https://mlflow.example"),
        ("run_id is 'https://mlflow.example'", "tracking_uri=URI"),
    ),
    (
        "the method run_id as run",
        lambda its: IAPLightGBMCallback(its.run.run_id),
        ("run is the method run_id", "run=run"),
    ),
    (
        "a negative number of trees",
        lambda its: IAPLightGBMCallback(log_trees=-1),
        ("log_trees is -1", "a number of trees"),
    ),
    *[
        (
            f"{name!r} as registered model",
            lambda its, name=name: IAPLightGBMCallback(registered_model_name=name),
            (f"registered_model_name is {name!r}", "without / and :"),
        )
        for name in ("", " ", "team/model", "models:/m")
    ],
    (
        "a method of the class",
        lambda its: IAPMLflowCallback.track_in_mlflow(),
        ("IAPMLflowCallback.track_in_mlflow is called on the class", "IAPMLflowCallback()."),
    ),
    (
        "a method of the class with an argument",
        lambda its: IAPLightGBMCallback.finish(its.trial),
        ("IAPLightGBMCallback.finish is called on the class", "IAPLightGBMCallback()."),
    ),
    (
        "a number as tracked objective",
        lambda its: its.optuna.track_in_mlflow()(1.0),
        ("objective is 1.0", "a function of a trial"),
    ),
    ("no origin", lambda its: IAPAuth(), ("'origin'", "the URL of the server")),
    ("a number as origin", lambda its: IAPAuth(5), ("origin is 5", "the URL of the server")),
    ("None as origin", lambda its: IAPAuth(None), ("origin is None", "the URL of the server")),
    (
        "a path as credentials of a session",
        lambda its: IAPAuth("https://mlflow.example", "key.json"),
        ("credentials is 'key.json'", "IAPCredentials(key_file=PATH)"),
    ),
    (
        "a number as retries",
        lambda its: IAPAuth("https://mlflow.example", retry=3),
        ("retry is 3", "a RetryPolicy"),
    ),
    ("a URL as run", lambda its: IAPLightGBMCallback(_URL), (_URL[:40], f"run='{_ID}'")),
    ("a name as run", lambda its: IAPLightGBMCallback("first"), ("run is 'first'", "run id")),
    ("a number as run", lambda its: IAPLightGBMCallback(3), ("run is 3", "run id")),
    (
        "a booster as run",
        lambda its: IAPLightGBMCallback(its.booster),
        ("run is a Booster", "finish(model)"),
    ),
    (
        "a trial as run",
        lambda its: IAPLightGBMCallback(its.trial),
        ("run is a Trial", "callback.run(trial)"),
    ),
    (
        "a study as run",
        lambda its: IAPLightGBMCallback(its.study),
        ("run is a Study", "IAPMLflowCallback.run(trial)"),
    ),
    (
        "a callback as run",
        lambda its: IAPLightGBMCallback(its.optuna),
        ("run is an IAPMLflowCallback", "callback.run(trial)"),
    ),
    (
        "a method as run",
        lambda its: IAPLightGBMCallback(its.optuna.run),
        ("run is the method run", "callback.run(trial)"),
    ),
    (
        "a class as run",
        lambda its: IAPLightGBMCallback(IAPRun),
        ("run is the class IAPRun", "run=IAPRun()"),
    ),
    (
        "a class as client",
        lambda its: IAPMLflowCallback(client=IAPMlflowClient),
        ("client is the class IAPMlflowClient", "client=IAPMlflowClient()"),
    ),
    (
        "a text as client",
        lambda its: IAPLightGBMCallback(client="https://mlflow.example"),
        ("client is 'https://mlflow.example'", "tracking_uri=URI"),
    ),
    (
        "credentials as client",
        lambda its: IAPRun(client=IAPCredentials()),
        ("client is an IAPCredentials", "IAPMlflowClient(credentials=credentials)"),
    ),
    (
        "a client as URI",
        lambda its: IAPMLflowCallback(its.client),
        ("tracking_uri is a FakeClient", "client=client"),
    ),
    (
        "a study as URI",
        lambda its: IAPMLflowCallback(its.study),
        ("tracking_uri is a Study", "omit it"),
    ),
    (
        "bytes as URI",
        lambda its: IAPMlflowClient(b"https://mlflow.example"),
        ("tracking_uri is b'https", "the URI of the server"),
    ),
    (
        "a host as URI",
        lambda its: IAPMlflowClient("mlflow.example"),
        ("'mlflow.example'", "https://HOST"),
    ),
    (
        "a path as credentials",
        lambda its: IAPMlflowClient("https://mlflow.example", credentials="/key.json"),
        ("credentials is '/key.json'", "IAPCredentials(key_file=PATH)"),
    ),
    (
        "a class as credentials",
        lambda its: IAPMlflowClient("https://mlflow.example", credentials=IAPCredentials),
        ("the class IAPCredentials", "credentials=IAPCredentials()"),
    ),
    (
        "text as number of attempts",
        lambda its: IAPMlflowClient("https://mlflow.example", max_attempts="3"),
        ("max_attempts is '3'", "a whole number"),
    ),
    (
        "text as deadline",
        lambda its: IAPMlflowClient("https://mlflow.example", deadline="1 min"),
        ("deadline is '1 min'", "a number of seconds"),
    ),
    (
        "a list as audience",
        lambda its: IAPCredentials(["id"]),
        ("audience is a list", "an OAuth client id"),
    ),
    (
        "a number as path of a key",
        lambda its: IAPCredentials(key_file=3),
        ("key_file is 3", "the path"),
    ),
    ("an unknown kind", lambda its: IAPCredentials(kind="jwt"), ("kind='jwt'", "signed_jwt")),
    ("text as tags", lambda its: IAPMLflowCallback(tags="a=b"), ("tags is 'a=b'", "a dict")),
    ("a list of tags", lambda its: IAPLightGBMCallback(tags=["a"]), ("tags is a list", "a dict")),
    (
        "text as tags of the trials",
        lambda its: IAPMLflowCallback(client=its.client, mlflow_kwargs={"tags": "a"}),
        ("tags is 'a'", "a dict"),
    ),
    (
        "text as further arguments",
        lambda its: IAPMLflowCallback(mlflow_kwargs="nested"),
        ("mlflow_kwargs is 'nested'", "a dict"),
    ),
    (
        "a URL as parent",
        lambda its: IAPMLflowCallback(client=its.client, mlflow_kwargs={"parent_run_id": _URL}),
        ("parent_run_id is 'https", f"parent_run_id='{_ID}'"),
    ),
    (
        "an almost right keyword",
        lambda its: IAPMLflowCallback(trackinguri="https://mlflow.example"),
        ("'trackinguri'", "'tracking_uri'"),
    ),
    (
        "a shortened keyword",
        lambda its: IAPLightGBMCallback(experiment="first"),
        ("'experiment'", "'experiment_name'"),
    ),
    ("a keyword of the client", lambda its: IAPMlflowClient(uri="x"), ("'uri'", "'tracking_uri'")),
    ("a keyword of the run", lambda its: IAPRun(parent_id=_ID), ("'parent_id'", "'parent_run_id'")),
    (
        "a keyword of the credentials",
        lambda its: IAPCredentials(keyfile="x"),
        ("'keyfile'", "'key_file'"),
    ),
    (
        "a keyword in the wrong case",
        lambda its: its.lightgbm.finish(its.booster, x=1),
        ("'x'", "'X'"),
    ),
    (
        "a keyword like no other",
        lambda its: its.optuna.flush(zzz=1),
        ("'zzz'", "It takes timeout"),
    ),
    (
        "too much without names",
        lambda its: IAPLightGBMCallback(None, "https://mlflow.example"),
        ("takes 1 of its arguments", "by name: tracking_uri"),
    ),
    (
        "a decorator without parentheses",
        lambda its: its.optuna.track_in_mlflow(lambda trial: 1.0),
        ("no parentheses", "@callback.track_in_mlflow()"),
    ),
    ("a number as trial", lambda its: its.optuna.run(3), ("trial is 3", "the trial itself")),
    ("no trial", lambda its: its.optuna.run(), ("'trial'", "the trial that Optuna passes")),
    ("None as trial", lambda its: its.optuna.run(None), ("trial is None", "the trial that")),
    (
        "a name as study",
        lambda its: its.optuna.sync("sweep"),
        ("study is 'sweep'", "optuna.load_study"),
    ),
    (
        "study and trial in the wrong order",
        lambda its: its.optuna.log_trial(its.trial, its.study),
        ("study is a Trial", "trial.study"),
    ),
    (
        "a path as trial",
        lambda its: its.optuna.log_if_best("model.txt", its.trial),
        ("trial is 'model.txt'", "the trial that"),
    ),
    (
        "a model as path",
        lambda its: its.optuna.log_if_best(its.trial, its.booster),
        ("local_path is a Booster", "the path of a file"),
    ),
    ("text as timeout", lambda its: its.optuna.flush("60"), ("timeout is '60'", "seconds")),
    ("a negative timeout", lambda its: its.lightgbm.flush(-1), ("timeout is -1", "seconds")),
    ("NaN as timeout", lambda its: its.run.run_id(float("nan")), ("timeout is nan", "seconds")),
    (
        "an empty experiment",
        lambda its: IAPRun(experiment_name=" "),
        ("experiment_name is ' '", "1 to 500"),
    ),
    (
        "a long experiment",
        lambda its: IAPLightGBMCallback(experiment_name="x" * 501),
        ("experiment_name is 'xxx", "1 to 500"),
    ),
    (
        "a number as experiment",
        lambda its: IAPMLflowCallback(experiment_name=12),
        ("experiment_name is 12", "the name of an experiment"),
    ),
    (
        "a number as a run's name",
        lambda its: IAPLightGBMCallback(run_name=1),
        ("run_name is 1", "a string"),
    ),
    (
        "text as most points",
        lambda its: IAPLightGBMCallback(max_points="many"),
        ("max_points is 'many'", "at least 3"),
    ),
    (
        "too few points",
        lambda its: IAPLightGBMCallback(client=its.client, max_points=2),
        ("max_points is 2", "at least 3"),
    ),
    (
        "a model as switch",
        lambda its: IAPLightGBMCallback(log_model=its.booster),
        ("log_model is a Booster", "True or False"),
    ),
    (
        "text as switch",
        lambda its: IAPMLflowCallback(study_run="no"),
        ("study_run is 'no'", "True or False"),
    ),
    (
        "a set of metrics",
        lambda its: IAPMLflowCallback(metric_name={"loss"}),
        ("metric_name is a set", "a sequence of names"),
    ),
    ("a handle as id", lambda its: IAPRun(its.run), ("run_id is an IAPRun", "the handle itself")),
    (
        "a run as id",
        lambda its: IAPRun(its.active),
        ("run_id is an ActiveRun", "run.info.run_id"),
    ),
    (
        "a name as id",
        lambda its: IAPRun("images"),
        ("run_id is 'images'", "experiment_name=NAME"),
    ),
    ("a client as id", lambda its: IAPRun(its.client), ("run_id is a FakeClient", "client=client")),
    (
        "a client as run",
        lambda its: IAPLightGBMCallback(its.client),
        ("run is a FakeClient", "client=client"),
    ),
    (
        "an existing run with a new name",
        lambda its: IAPRun(_ID, run_name="first"),
        ("run_id and run_name", "Omit one"),
    ),
]


@pytest.mark.parametrize(("call", "words"), [w[1:] for w in _WRONG], ids=[w[0] for w in _WRONG])
def test_a_wrong_call_says_what_was_found_and_what_to_pass_before_anything_is_logged(
    its: SimpleNamespace, call: Callable[[Any], Any], words: tuple[str, ...]
) -> None:
    with pytest.raises((TypeError, ValueError, public.IAPConfigurationError)) as raised:
        call(its)
    text = str(raised.value)
    assert all(word in text for word in words), text
    assert len(text) < 400
    assert text.endswith((".", "?"))
    assert "mlflow_iap_callbacks" in str(raised.traceback[-1].path)
    assert its.client.server.runs == {}
    assert its.client.server.calls == []


@pytest.mark.parametrize(
    "call",
    [
        lambda its: IAPLightGBMCallback(_ID, client=its.client, max_points=np.int64(5)),
        lambda its: IAPLightGBMCallback(its.active, client=its.client),
        lambda its: IAPLightGBMCallback(its.run),
        lambda its: IAPMLflowCallback(
            client=its.client, metric_name=("a", "b"), study_run=np.True_
        ),
        lambda its: IAPMLflowCallback(client=its.client, mlflow_kwargs={"experiment_id": 7}),
        lambda its: IAPRun(experiment_name="x" * 500, client=its.client, tags=None),
        lambda its: its.optuna.flush(np.float32(0.0)),
        lambda its: its.optuna.flush(None),
        lambda its: its.lightgbm.flush(timeout=None),
    ],
)
def test_a_right_call_is_accepted(its: SimpleNamespace, call: Callable[[Any], Any]) -> None:
    call(its)


def test_a_wrong_call_is_noticed_after_right_ones(its: SimpleNamespace) -> None:
    study = optuna.create_study()
    for _ in range(2):
        study.optimize(lambda _: 0.5, 1, callbacks=[its.optuna])
    with pytest.raises(TypeError, match="trial is 0"):
        its.optuna(study, 0)
    with pytest.raises(TypeError, match="study is 'a'"):
        its.optuna("a", study.trials[0])
    with pytest.raises(TypeError, match="has no argument 'last'"):
        its.optuna(study, study.trials[0], last=1)


def test_each_argument_takes_none_if_its_type_says_so() -> None:
    classes = (IAPLightGBMCallback, IAPMLflowCallback, IAPRun, public.IAPCredentials)
    found = {
        parameter.name
        for each in classes
        for _, function in inspect.getmembers(each, inspect.isroutine)
        if hasattr(function, "__wrapped__")
        for parameter in inspect.signature(function).parameters.values()
        # As a default, None is not checked.
        if "None" in str(parameter.annotation) and parameter.default is not None
    }
    assert "timeout" in found
    for name in found:
        assert check(name, None) is None


def test_a_class_still_shows_its_attributes() -> None:
    assert vars(IAPLightGBMCallback)["__call__"] is IAPLightGBMCallback.__call__
    assert "run" in inspect.signature(IAPLightGBMCallback).parameters
    assert inspect.signature(IAPMLflowCallback.run).parameters.keys() == {"self", "trial", "study"}


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("IAPMlflowCallback", "IAPMLflowCallback"),
        ("IAPMLflowClient", "IAPMlflowClient"),
        ("IAPLightGbmCallback", "IAPLightGBMCallback"),
        ("IAPLightgbmCallback", "IAPLightGBMCallback"),
        ("IapRun", "IAPRun"),
    ],
)
def test_a_name_in_the_wrong_case_is_found(name: str, right: str) -> None:
    assert getattr(public, name) is getattr(public, right)
