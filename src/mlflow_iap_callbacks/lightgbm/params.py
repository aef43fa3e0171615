"""The params of a model: those that were given, and those that LightGBM used."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from .boosters import boosters_of

# Params for the command line, files, network and device, which do not change the model.
_NOT_OF_THE_MODEL = re.compile(
    r"data|valid|header|two_round|pre_partition|precise_float_parser|parser_config_file"
    r"|.*_column|.*_filename|num_machines|machines|local_listen_port|time_out|gpu_.*|num_gpu"
    r"|saved_feature_importance_type|histogram_pool_size|refit_decay_rate"
)


def header_of(model: Any) -> str:
    """Text of a model without most of its trees: features first, params last."""
    return str(boosters_of(model)[0].model_to_string(num_iteration=1))


def used_in(header: str) -> dict[str, str]:
    """Params that LightGBM used, by canonical name, with values as LightGBM writes them."""
    text = header.partition("\nparameters:\n")[2].partition("\nend of parameters")[0]
    found = dict(re.findall(r"^\[(\w+): (.*)\]$", text, re.MULTILINE))
    return {
        name: value
        for name, value in found.items()
        if value and not _NOT_OF_THE_MODEL.fullmatch(name)
    }


def features_in(header: str) -> tuple[list[str], list[str]]:
    """Names of the features, and the range or the categories of each."""
    # Names may contain whitespace other than spaces, even what ``splitlines`` splits at.
    lines = dict(line.partition("=")[::2] for line in header.split("\n")[:20])
    names, infos = (lines.get(f"feature_{what}", "").split(" ") for what in ("names", "infos"))
    return [*filter(None, names)], [*filter(None, infos)]


def params_of(given: Mapping[str, Any], used: Mapping[str, str]) -> dict[str, Any]:
    """The given params, by their given names and by their canonical names.

    If LightGBM used another value than the given one, the canonical ``NAME`` has the used value and
    ``given.NAME`` has the given value. ``used`` is what ``used_in`` returns.
    """
    params: dict[str, Any] = {}
    for name, given_value in given.items():
        canonical = canonical_name(name)
        value, known = _in_order(given_value), used.get(canonical)
        if known is not None and isinstance(given_value, set):
            known = ",".join(sorted(known.split(",")))
        if known is None or _is_same(value, known):
            # The given value, because LightGBM writes six digits only.
            params[name] = value
            params.setdefault(canonical, value)
        else:
            params[canonical] = known
            params[name if name != canonical else f"given.{name}"] = value
    return params


def canonical_name(name: str) -> str:
    """The name of a param in LightGBM's documentation, for any of its aliases."""
    return _canonical_names().get(name, name)


def value_of(given: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value of the param with this canonical name, no matter by which alias it is given."""
    others = (value for each, value in given.items() if canonical_name(each) == name)
    return given[name] if name in given else next(others, default)


@functools.cache
def _canonical_names() -> Mapping[str, str]:
    """Canonical names by alias."""
    try:
        from lightgbm.basic import _ConfigAliases

        _ConfigAliases.get("")  # loads the aliases
        aliases: Any = _ConfigAliases.aliases
        return {alias: str(main) for main, others in aliases.items() for alias in others}
    except (AttributeError, ImportError):  # private to LightGBM
        return {}


def name_of(function: Any) -> str:
    """The name of a custom objective."""
    while hasattr(function, "func"):  # as in ``functools.partial`` and scikit-learn's estimators
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _in_order(value: Any) -> Any:
    """The value with sorted lists in place of sets, whose order differs between processes."""
    if isinstance(value, list | tuple):
        return type(value)(map(_in_order, value)) if type(value) in (list, tuple) else value
    return sorted(value, key=str) if isinstance(value, set | frozenset) else value


def _is_same(given: Any, used: str) -> bool:
    if isinstance(given, bool):
        return used == str(int(given))
    if isinstance(given, list | tuple):
        return used == ",".join(map(str, given))
    try:
        return math.isclose(float(given), float(used), rel_tol=1e-5)
    except (OverflowError, TypeError, ValueError):
        return str(given) == used
