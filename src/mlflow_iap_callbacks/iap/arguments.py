"""Checks the arguments of the public classes, by their names, before anything is done with them."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

from ..limits import MAX_EXPERIMENT_NAME_LENGTH

_Function = TypeVar("_Function", bound=Callable[..., Any])

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MOST_SHOWN = 80  # characters of a value


class _Rule(NamedTuple):
    """What an argument accepts, in code and in words.

    ``kinds`` are types of which only some values are accepted.
    """

    accepts: Callable[[Any], bool]
    wanted: str
    kinds: tuple[type, ...] = ()


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _has(*names: str) -> Callable[[Any], bool]:
    """Accept objects (not classes) with these attributes, so that no library is imported."""
    return lambda value: (
        not isinstance(value, type) and all(hasattr(type(value), name) for name in names)
    )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_seconds(value: Any) -> bool:
    return _is(Real)(value) and value >= 0 and not math.isnan(value)


def _is_run_id(value: Any) -> bool:
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


def _is_run(value: Any) -> bool:
    is_handle = _has("log_metrics", "run_id")(value)
    # ``mlflow.active_run()`` may not know its run yet.
    return is_handle or _is_run_id(value) or _has("info", "data")(value)


def _is_dataset(value: Any) -> bool:
    # A data frame can be converted to a dict too.
    return not isinstance(value, type) and hasattr(value, "to_dict") and not hasattr(value, "iloc")


def _is_name_of_experiment(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value.strip()) > 0
        and len(value) <= MAX_EXPERIMENT_NAME_LENGTH
    )


def _is_name_of_model(value: Any) -> bool:
    return isinstance(value, str) and len(value.strip()) > 0 and not {*value} & {"/", ":"}


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and "://" in value


def _is_method(name: str) -> Callable[[Any], bool]:
    return lambda value: inspect.isroutine(value) and value.__name__ == name


def _is_metric_name(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    is_sequence = isinstance(names, Sequence) and not isinstance(names, bytes)
    return is_sequence and all(isinstance(name, str) for name in names)


_TEXT = _is(str)
_PATH = _is(str, os.PathLike)
_NUMBER = _is(Integral)
_FLAG = _Rule(_is_flag, "True or False")
_TAGS = _Rule(_is(Mapping), "a dict, such as {'team': 'search'}")
_EXAMPLE_RUN_ID = "a run id of 32 hexadecimal digits, such as run.info.run_id"
_PATH_OF_ARTIFACT = "a path in the run's artifacts, such as 'plots/loss.png'"
_PATH_OF_FILE = "the path of a file or folder"

# By the name of the argument, which means the same in all classes.
_RULES = {
    "artifact_file": _Rule(_PATH, _PATH_OF_ARTIFACT),
    "artifact_path": _Rule(_PATH, _PATH_OF_ARTIFACT),
    "audience": _Rule(_TEXT, "an OAuth client id as a string"),
    "client": _Rule(_has("tracking_uri", "log_batch"), "an MlflowClient: client=IAPMlflowClient()"),
    "credentials": _Rule(_has("for_origin", "token"), "credentials=IAPCredentials()"),
    "dataset": _Rule(_is_dataset, "a data set, such as mlflow.data.from_pandas(df)"),
    "deadline": _Rule(_is_seconds, "a number of seconds", (Real,)),
    "description": _Rule(_TEXT, "a string"),
    "experiment_id": _Rule(_is(str, Integral), "the id of an experiment, such as '12'"),
    "experiment_name": _Rule(
        _is_name_of_experiment,
        f"the name of an experiment: a string of 1 to {MAX_EXPERIMENT_NAME_LENGTH} characters",
        (str,),
    ),
    "impersonate": _Rule(_TEXT, "the e-mail of a service account"),
    "key_file": _Rule(_PATH, "the path of a credentials file"),
    "kind": _Rule(_TEXT, "'id_token', 'signed_jwt' or 'access_token'"),
    "local_path": _Rule(_PATH, _PATH_OF_FILE),
    "log_trees": _Rule(
        lambda value: _NUMBER(value) and value >= 0, "a number of trees", (Integral,)
    ),
    "max_attempts": _Rule(_NUMBER, "a whole number of at least 1"),
    "max_points": _Rule(_NUMBER, "a whole number of at least 3"),
    "metric_name": _Rule(_is_metric_name, "one name, or a sequence of names"),
    "metrics": _Rule(_is(Mapping), "a dict of numbers, such as {'loss': 0.5}"),
    "mlflow_kwargs": _Rule(_is(Mapping), "a dict, such as {'run_name': 'first'}"),
    "model_path": _Rule(
        _PATH, "the path of a folder that mlflow.FLAVOR.save_model(model, path) wrote"
    ),
    "objective": _Rule(callable, "the objective, which is a function of a trial"),
    "origin": _Rule(_TEXT, "the URL of the server, such as 'https://mlflow.example.com'"),
    "params": _Rule(_is(Mapping), "a dict, such as {'depth': 3}"),
    "parent_run_id": _Rule(_is_run_id, _EXAMPLE_RUN_ID, (str,)),
    "registered_model_name": _Rule(
        _is_name_of_model, "the name of a registered model, without / and :", (str,)
    ),
    "registry_uri": _Rule(_PATH, "the URI of the model registry"),
    "retry": _Rule(_has("max_attempts", "deadline"), "a RetryPolicy"),
    "run": _Rule(
        _is_run,
        f"IAPMLflowCallback.run(trial), mlflow.active_run(), or {_EXAMPLE_RUN_ID}",
        (str,),
    ),
    "run_id": _Rule(
        _is_run_id, f"{_EXAMPLE_RUN_ID}; or experiment_name=NAME for a new run", (str,)
    ),
    "run_name": _Rule(_TEXT, "a string"),
    "study": _Rule(_has("get_trials", "directions"), "an Optuna study"),
    "tags": _TAGS,
    "timeout": _Rule(
        lambda value: value is None or _is_seconds(value),
        "a number of seconds, or None for no limit",
        (Real,),
    ),
    "tracking_uri": _Rule(_PATH, "the URI of the server, such as 'https://mlflow.example.com'"),
    "trial": _Rule(
        _has("suggest_float", "number"), "the trial that Optuna passes to the objective"
    ),
    **dict.fromkeys(
        ("create_experiment", "fold_curves", "log_datasets", "log_model", "log_pictures"), _FLAG
    ),
    **dict.fromkeys(("nested", "study_run", "tag_study_user_attrs", "tag_trial_user_attrs"), _FLAG),
}
_BY_TYPE = {"study", "trial"}  # accepted or not by their type alone
_IS_STUDY = _has("get_trials", "directions")
# Values that are often given in place of the right one: argument, test, and what to do instead.
_MISTAKES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("run", _has("predict"), "Pass a model to finish(model) after its training"),
    ("run", _has("suggest_float"), "Pass the handle of its run: run=callback.run(trial)"),
    ("run", _has("log_if_best"), "Pass the handle of a trial's run: run=callback.run(trial)"),
    ("run", _is_method("run_id"), "Pass the handle that it belongs to: run=run"),
    ("run", inspect.isroutine, "Call it: run=callback.run(trial)"),
    ("run", _is_url, "Pass it by name: tracking_uri=URI"),
    ("run", _has("log_batch"), "Pass it by name: client=client"),
    ("run_id", _is_url, "Pass it by name: tracking_uri=URI"),
    ("run_id", _has("log_batch"), "Pass it by name: client=client"),
    ("run_id", _has("run_id", "log_metrics"), "Use the handle itself; it needs no other"),
    ("run_id", _has("info", "data"), "Pass its id: run.info.run_id"),
    ("tracking_uri", _IS_STUDY, "Study.optimize passes it to the callback; omit it here"),
    ("tracking_uri", _has("log_batch"), "Pass it by name: client=client"),
    ("tracking_uri", _has("for_origin"), "Pass it by name: credentials=credentials"),
    ("credentials", _PATH, "Pass credentials=IAPCredentials(key_file=PATH)"),
    ("credentials", _has("before_request"), "Pass credentials=IAPCredentials(), which finds them"),
    ("client", _PATH, "Pass it by name: tracking_uri=URI"),
    ("client", _has("for_origin"), "Pass client=IAPMlflowClient(credentials=credentials)"),
    ("trial", _NUMBER, "Pass the trial itself, and not its number"),
    ("study", _has("suggest_float"), "Pass trial.study"),
    ("study", _TEXT, "Pass the study itself: optuna.load_study(study_name=..., storage=...)"),
)


def checked(function: _Function) -> _Function:
    """Decorate a public function or ``__init__`` to check its arguments before it is called.

    It then raises a ``TypeError`` or ``ValueError`` that names the argument, what was given, and
    what to pass instead.
    """
    signature = inspect.signature(function)
    names = [*signature.parameters][1:]
    positional = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]

    # Types of arguments that were accepted, because a callback is called very often.
    accepted: set[tuple[type, ...]] = set()
    is_by_type = len(names) == len(positional) - 1 and _BY_TYPE.issuperset(names)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        types = tuple(map(type, args))
        if types in accepted and not kwargs:
            return function(*args)
        title = _title(function, args)
        _check_use(function, args, title)
        for name, value in [*zip(positional[1:], args[1:], strict=False), *kwargs.items()]:
            if name not in names:
                raise TypeError(f"{title}() has no argument {name!r}. {_nearest(name, names)}")
            if value is not signature.parameters[name].default:
                check(name, value)
        if len(args) > len(positional):
            raise TypeError(_too_many(title, args, names, len(positional) - 1))
        for parameter in signature.parameters.values():
            is_given = parameter.name in kwargs or parameter.name in positional[: len(args)]
            if not is_given and parameter.default is parameter.empty:
                wanted = (
                    f" Pass {_RULES[parameter.name].wanted}." if parameter.name in _RULES else ""
                )
                raise TypeError(f"{title}() needs the argument {parameter.name!r}.{wanted}")
        if is_by_type and not kwargs:
            accepted.add(types)
        return function(*args, **kwargs)

    return cast(_Function, call)


def check(name: str, value: Any) -> Any:
    """Return the value of an argument.

    Raises:
        TypeError: it is of a wrong kind.
        ValueError: it is of the right kind, but cannot be right.
    """
    rule = _RULES.get(name)
    if rule is None or rule.accepts(value):
        return value
    shown = name.replace("model_path", "local_path")
    is_kind = isinstance(value, rule.kinds) and not isinstance(value, bool)
    error = ValueError if is_kind else TypeError
    raise error(f"{shown} is {_described(value)}. {_remedy(name, value, rule)}.")


class InstancesOnly(type):
    """The metaclass of the callbacks, which says what to do if a class is given, not an object.

    LightGBM's first use of a callback is ``callback.__dict__.setdefault``.
    """

    @property  # type: ignore[misc]
    def __dict__(cls) -> dict[str, Any]:  # type: ignore[override]
        return _Attributes(cls.__name__, type.__dict__["__dict__"].__get__(cls))

    @property
    def __signature__(cls) -> inspect.Signature:
        # Python 3.13 does not find it where ``__dict__`` is a property.
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=[*signature.parameters.values()][1:])


class Callback(metaclass=InstancesOnly):
    """Base class of the callbacks."""

    def __iter__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"callbacks is one {name}. Pass a list: callbacks=[callback].")


class _Attributes(dict[str, Any]):
    def __init__(self, name: str, attributes: Mapping[str, Any]) -> None:
        super().__init__(attributes)
        self._name = name

    def setdefault(self, *_: object) -> NoReturn:
        raise TypeError(_class_given(self._name, "IAPLightGBMCallback"))


def _is_env(value: Any) -> bool:
    """Whether it is what LightGBM passes to a callback."""
    return type(value).__name__ == "CallbackEnv"


def wrong_library(callback: object, library: str, other: str) -> TypeError:
    """Return the error for a callback that was given to another library."""
    name = type(callback).__name__
    return TypeError(f"{name} is not a callback for {library}. Pass callbacks=[{other}()].")


def _title(function: Callable[..., Any], args: Sequence[Any]) -> str:
    if function.__name__ == "__init__":
        return type(args[0]).__name__
    return function.__qualname__.replace(".__call__", "")


def _check_use(function: Callable[..., Any], args: Sequence[Any], title: str) -> None:
    """Raise an error if a class, not an object, or the wrong callback is called."""
    *_, owner, method = ("", *function.__qualname__.split("."))
    if owner and owner not in [each.__name__ for each in type(args[0] if args else None).__mro__]:
        raise TypeError(
            f"{title} is called on the class. Create an object first: {owner}().{method}()."
        )
    given = args[1:]
    if function.__name__ == "__init__" and any(map(_is_env, given)):
        raise TypeError(_class_given(title, "IAPLightGBMCallback"))
    if function.__name__ == "__init__" and len(given) == 2 and _IS_STUDY(given[0]):
        raise TypeError(_class_given(title, "IAPMLflowCallback"))
    if function.__name__ == "__call__" and any(map(_is_env, given)):
        raise wrong_library(args[0], "LightGBM", "IAPLightGBMCallback")


def _class_given(name: str, right: str) -> str:
    return f"callbacks has the class {name}. Pass an object: callbacks=[{right}()]."


def _too_many(title: str, args: Sequence[Any], names: Sequence[str], most: int) -> str:
    if most == 0 and inspect.isroutine(args[-1]):
        method = title.rpartition(".")[2]
        return f"{title} has no parentheses. Write @callback.{method}() above the function."
    rest = names[most:]
    remedy = f"Pass the others by name: {', '.join(rest)}." if rest else "Omit the others."
    return f"{title}() takes {most} of its arguments without names, not {len(args) - 1}. {remedy}"


def _nearest(name: str, names: Sequence[str]) -> str:
    word = name.lower()
    contained = [each for each in names if word in each.lower() or each.lower() in word]
    lowered = {each.lower(): each for each in names}
    similar = [lowered[each] for each in get_close_matches(word, lowered, 1)]
    if similar or contained:
        return f"Did you mean {(similar or contained)[0]!r}?"
    return f"It takes {', '.join(names)}." if names else "It takes none."


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        kind = "method" if inspect.ismethod(value) else "function"
        return f"the {kind} {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value)
        return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _remedy(name: str, value: Any, rule: _Rule) -> str:
    if name in ("run", "run_id", "parent_run_id") and isinstance(value, str):
        found = _RUN_ID.search(value)
        if found:
            return f"Pass only the run id: {name}={found[0]!r}"
    if isinstance(value, type):
        try:
            is_right = rule.accepts(object.__new__(value))
        except TypeError:
            is_right = False
        if is_right:
            return f"Pass an object: {name}={value.__name__}()"
    for argument, is_mistake, remedy in _MISTAKES:
        if argument == name and is_mistake(value):
            return remedy
    return f"Pass {rule.wanted}"
