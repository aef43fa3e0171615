"""LightGBM training. Libraries are imported where they are used, to compare memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from contender import Contender, Timed, flush, paired

# Takes less than a second for 100 rounds on one thread.
ROWS, FEATURES = 20_000, 40
PAIRED_ROUNDS = 100
LONG_PAIRED_ROUNDS = 10_000


def classes(rows: int = ROWS) -> tuple[Any, Any]:
    """Return features and two classes, which are the same each time."""
    import numpy as np

    random = np.random.default_rng(0)
    x = random.normal(size=(rows, FEATURES))
    return x, (x[:, :5].sum(axis=1) + random.normal(size=rows) > 0).astype(int)


@cache
def _data_sets(rows: int, count: int) -> list[Any]:
    """Return data sets, the first to train on.

    They are the same objects each time: where a data set is in memory changes the time of training
    by up to 2 %.
    """
    import lightgbm as lgb

    x, y = classes(rows)
    cut = rows * 4 // 5
    # autolog reads the raw data.
    train = lgb.Dataset(x[:cut], y[:cut], free_raw_data=False)
    others = [
        lgb.Dataset(x[cut:], y[cut:], reference=train, free_raw_data=False)
        for _ in range(count - 1)
    ]
    return [train, *others]


def _training(
    _: str = "",
    callback: Callable[..., None] | None = None,
    *,
    rows: int = ROWS,
    names: Sequence[str] = ("train", "valid"),
    metrics: Sequence[str] = ("auc", "binary_logloss"),
) -> Contender:
    import lightgbm as lgb

    data_sets = _data_sets(rows, len(names))
    params = {"objective": "binary", "metric": list(metrics), "num_threads": 1}
    events: list[float] = []

    def run(rounds: int) -> None:
        lgb.train(
            {**params, "verbosity": -1},
            data_sets[0],
            num_boost_round=rounds,
            valid_sets=data_sets,
            valid_names=list(names),
            callbacks=[Timed(callback, events)] if callback else [],
        )

    return Contender(run, events=events)


def _ours(experiment: str, **training: Any) -> Contender:
    from mlflow_iap_callbacks import IAPLightGBMCallback

    callback = IAPLightGBMCallback(experiment_name=experiment)
    contender = _training(callback=callback, **training)
    contender.deliver = lambda: flush(callback)
    return contender


def _autolog(experiment: str) -> Contender:
    import mlflow

    mlflow.set_experiment(experiment)
    mlflow.lightgbm.autolog(log_models=False)
    return _training()


def _log_metric(experiment: str, *, synchronous: bool) -> Contender:
    """A callback as many users write it: one request per value."""
    from mlflow_iap_callbacks import IAPMlflowClient

    client = IAPMlflowClient()
    experiment_id = client.create_experiment(experiment)
    runs: list[str] = []
    pending: list[Any] = []

    def callback(env: Any) -> None:
        if env.iteration == env.begin_iteration:
            runs.append(client.create_run(experiment_id).info.run_id)
        for data, metric, value, *_ in env.evaluation_result_list:
            name = f"{data}-{metric}"
            done = client.log_metric(
                runs[-1], name, value, step=env.iteration, synchronous=synchronous
            )
            if not synchronous:
                pending.append(done)

    def deliver() -> None:
        while pending:
            pending.pop().wait()
        client.set_terminated(runs[-1])

    contender = _training(callback=callback)
    contender.deliver = deliver
    return contender


def _paired(experiment: str) -> Contender:
    return paired(_training(), _ours(experiment), PAIRED_ROUNDS)


CONTENDERS: dict[str, Callable[[str], Contender]] = {
    "none": _training,
    "ours": _ours,
    "autolog": _autolog,
    "log_metric": partial(_log_metric, synchronous=True),
    "log_metric, async": partial(_log_metric, synchronous=False),
}
PAIRED: dict[str, Callable[[str], Contender]] = {"ours": _paired}

# A small set, so that rounds are short and points are frequent.
_MANY_POINTS: Any = {
    "rows": 2_000,
    "names": ("train", "valid", "test"),
    "metrics": ("auc", "average_precision", "binary_error", "binary_logloss"),
}
LONG: dict[str, Callable[[str], Contender]] = {
    "none": partial(_training, **_MANY_POINTS),
    "ours": partial(_ours, **_MANY_POINTS),
}


def _long_paired(experiment: str) -> Contender:
    plain, ours = (contender(experiment) for contender in LONG.values())
    return paired(plain, ours, LONG_PAIRED_ROUNDS, is_delivered_between=True)


LONG_PAIRED: dict[str, Callable[[str], Contender]] = {"ours": _long_paired}
