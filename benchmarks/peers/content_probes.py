"""Probes of what is stored in addition to the learning curve."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import lightgbm as lgb
import numpy as np

from . import judge
from .data import FEATURES, NAMES, PARAMS, ROWS, curves_of, points, train
from .peer import Peer, StoredRun
from .rows import Answers, probe

_Noted = TypeVar("_Noted")


@probe(
    "Params",
    given="params as given",
    resolved="params as LightGBM resolved them (`eta` is `learning_rate`)",
    seconds="seconds per iteration",
)
def params(peer: Peer, answers: Answers) -> None:
    with peer.run() as session:
        booster, _ = train(session.callbacks)
        session.finish(booster, None, None)
    run = _one(peer)
    kept = [name for name, value in PARAMS.items() if run.params.get(name) == str(value)]
    of_all = f"{len(kept)} of {len(PARAMS)}"
    cell = judge.YES if len(kept) == len(PARAMS) else judge.part(of_all) if kept else judge.NO
    answers.put("given", cell, run.params)
    found = judge.says(run, r"learning_rate[\"']?\s*[:=,]\s*[\"']?0\.07")
    answers.put("resolved", judge.yes_if(found), found)
    clocks = [n for n in run.curves if re.search("sec|(?<!_run)time(?!stamp)|duration|_runtime", n)]
    if clocks == ["_runtime"]:
        cell = judge.part("seconds since the start")
    else:
        cell = judge.yes_if(any(len(run.curves[name]) >= 11 for name in clocks))
    answers.put("seconds", cell, clocks)


def _one(peer: Peer) -> StoredRun:
    runs = peer.stored()
    return runs[0] if runs else StoredRun()


@probe("Params", rate="the learning rate when it changes (`reset_parameter`)")
def learning_rate(peer: Peer, answers: Answers) -> None:
    rates = [0.1 * 0.9**number for number in range(12)]
    with peer.run() as session:
        train([lgb.reset_parameter(learning_rate=rates), *session.callbacks])
    curves = [dict(curve) for curve in _one(peer).curves.values()]
    wanted = dict(enumerate(rates))
    found = any(
        curve.keys() == wanted.keys() and all(abs(curve[i] - wanted[i]) < 1e-12 for i in wanted)
        for curve in curves
    )
    answers.put("rate", judge.yes_if(found))


@probe(
    "Data set",
    shape="rows and features",
    names="feature names",
    categorical="which features are categorical",
    digest="a digest that identifies the data set",
)
def data_set(peer: Peer, answers: Answers) -> None:
    import pandas as pd

    for seed in (0, 1):
        x, y = points(seed)
        frame = pd.DataFrame(x, columns=NAMES)
        frame["colour"] = pd.Categorical(np.where(x[:, 4] > 0, "red", "blue"))
        with peer.run() as session:
            data = lgb.Dataset(frame, y, free_raw_data=False)
            booster = lgb.train(
                dict(PARAMS),
                data,
                8,
                valid_sets=[data],
                valid_names=["train"],
                callbacks=session.callbacks,
            )
            session.finish(booster, None, None)
    runs = peer.stored() or [StoredRun()]
    run = runs[0]
    rows = judge.says(run, judge.number(ROWS))
    schema = "\n".join(run.inputs)
    columns = all(each in schema for each in NAMES) or judge.says(run, judge.number(FEATURES + 1))
    cell = judge.YES if rows and columns else judge.part("rows") if rows else judge.NO
    answers.put("shape", cell, (rows, columns))
    texts = [name for name, text in judge.texts(run) if all(each in text for each in NAMES)]
    answers.put("names", judge.yes_if(texts), texts)
    found = judge.says(run, r"(?i)categor[^\n]{0,200}\bcolour\b|\bcolour\b[^\n]{0,200}categor")
    answers.put("categorical", judge.yes_if(found), found)
    digests = [_digests(each) for each in runs]
    is_told = len(digests) > 1 and digests[0] and digests[0] != digests[1]
    answers.put("digest", judge.yes_if(is_told), digests)


def _digests(run: StoredRun) -> list[str]:
    text = "\n".join(text for _, text in judge.texts(run))
    return sorted(re.findall(r"(?i)(?:digest|hash)[\"']?\s*[:=]\s*[\"']?([\w\-]{6,})", text))


@probe("Data set", sparse="sparse data is not made dense")
def sparse_data(peer: Peer, answers: Answers) -> None:
    from scipy import sparse

    x = sparse.random(150, 4000, density=0.05, format="csr", random_state=0)
    y = (np.asarray(x[:, :400].sum(axis=1)).ravel() > 10).astype(int)
    recorded: dict[str, Any] = {}
    names = ("toarray", "todense")
    with _noting(sparse.csr_matrix, names, lambda matrix, _: matrix.shape) as shapes:
        with peer.run() as session:
            data = lgb.Dataset(x, y, free_raw_data=False)
            booster = lgb.train(
                dict(PARAMS),
                data,
                6,
                valid_sets=[data],
                valid_names=["train"],
                callbacks=[lgb.record_evaluation(recorded), *session.callbacks],
            )
            session.finish(booster, None, None)
        runs = peer.stored()
    cell = judge.curves(curves_of(recorded), runs)
    is_dense = any(rows * columns > x.shape[0] * x.shape[1] / 2 for rows, columns in shapes)
    answers.put("sparse", judge.NO if is_dense else cell, shapes)


@contextmanager
def _noting(
    kind: Any, names: Sequence[str], note: Callable[[Any, Any], _Noted]
) -> Iterator[list[_Noted]]:
    """Collect what `note` returns for the object and the result of each call of these methods."""
    noted: list[_Noted] = []
    originals = {name: getattr(kind, name) for name in names}

    def noting(original: Any) -> Any:
        def method(self: Any, *given: Any, **named: Any) -> Any:
            answer = original(self, *given, **named)
            noted.append(note(self, answer))
            return answer

        return method

    for name, original in originals.items():
        setattr(kind, name, noting(original))
    try:
        yield noted
    finally:
        for name, original in originals.items():
            setattr(kind, name, original)


@probe(
    "Finished model",
    gain="importance by gain, as a table",
    split="importance by split, as a table",
    importance="importance as a plot",
    curves="learning curves as a plot",
    confusion="confusion matrix for data that you pass",
    trees="trees, drawn or as a table",
    model="the model, which can be loaded again",
    signature="its signature",
    example="its input example",
    requirements="pinned requirements",
    registered="registered on request",
)
def finished_model(peer: Peer, answers: Answers) -> None:
    x, y = points(5)
    name = "peers-model"
    with peer.run(registered_model_name=name, log_trees=1) as session:
        start = perf_counter()
        booster, _ = train(session.callbacks)
        trained = perf_counter()
        session.finish(booster, x, y)
        seconds = perf_counter() - trained
    run = _one(peer)
    answers.seen["seconds"] = f"training {trained - start:.2f}, then finish {seconds:.2f}"
    for kind in ("gain", "split"):
        values = [float(each) for each in booster.feature_importance(kind)]
        found = judge.has_table(run, booster.feature_name(), values)
        answers.put(kind, judge.yes_if(found), found)
    for row, pattern in (
        ("importance", "importance"),
        ("curves", "curve|learning|evaluation|metrics"),
        ("confusion", "confusion"),
    ):
        pictures = judge.pictures(run, pattern)
        answers.put(row, judge.yes_if(pictures), pictures)
    models = dict(judge.model_files(run))
    trees = [n for n in (*run.files, *run.charts) if re.search("tree", n) and n not in models]
    answers.put("trees", judge.yes_if(trees), trees)
    loaded = {name: _is_model(path, booster, x) for name, path in models.items()}
    is_text = any(path.suffix != ".pkl" for name, path in models.items() if loaded[name])
    cell = judge.YES if is_text else judge.part("a pickle") if any(loaded.values()) else judge.NO
    answers.put("model", cell, loaded)
    answers.put("signature", judge.yes_if(judge.says(run, r"(?m)^signature:")))
    examples = [name for name in run.files if "input_example" in name]
    answers.put("example", judge.yes_if(examples), examples)
    pinned = judge.says(run, r"lightgbm==\d+\.\d+\.\d+")
    answers.put("requirements", judge.yes_if(pinned), pinned)
    answers.put("registered", judge.yes_if(run.registered), run.registered)


def _is_model(path: Path, booster: lgb.Booster, x: Any) -> bool:
    if path.suffix in (".pkl", ".pickle"):
        loaded = pickle.loads(path.read_bytes())
    else:
        loaded = lgb.Booster(model_file=str(path))
    return bool(np.array_equal(loaded.predict(x), booster.predict(x)))


@probe("Finished model", residuals="residuals of a regression")
def regression(peer: Peer, answers: Answers) -> None:
    x, _ = points(5)
    y = x[:, 0] * 2 + np.sin(x[:, 1])
    with peer.run() as session:
        data = lgb.Dataset(x, y, free_raw_data=False)
        booster = lgb.train(
            {**PARAMS, "objective": "regression", "metric": ["l2"]},
            data,
            8,
            valid_sets=[data],
            callbacks=session.callbacks,
        )
        session.finish(booster, x, y)
    run = _one(peer)
    pictures = judge.pictures(run, "residual|actual|predicted")
    answers.put("residuals", judge.yes_if(pictures), sorted(run.files))


@probe("Finished model", wide="2,000 features: the plot shows only the first ones")
def wide_data(peer: Peer, answers: Answers) -> None:
    x, y = points(rows=150, features=2000)
    with _bars() as bars:
        with peer.run() as session:
            data = lgb.Dataset(x, y, free_raw_data=False)
            booster = lgb.train(
                dict(PARAMS), data, 15, valid_sets=[data], callbacks=session.callbacks
            )
            session.finish(booster, None, None)
        run = _one(peer)
    pictures = judge.pictures(run, "importance")
    if not pictures:
        answers.put("wide", judge.NO, "no picture")
        return
    tables = [
        len(re.findall(r"Column_\d+", run.files[n].read_text()))
        for n in run.charts
        if n in run.files
    ]
    most = max([*bars, *tables], default=0)
    answers.put("wide", judge.YES if most <= 100 else f"no: {most:,} bars", (pictures, bars))


def _bars() -> AbstractContextManager[list[int]]:
    """Collect the numbers of bars that matplotlib draws."""
    try:
        from matplotlib.axes import Axes
    except ImportError:
        return nullcontext([])
    return _noting(Axes, ("bar", "barh"), lambda _, drawn: len(drawn))
