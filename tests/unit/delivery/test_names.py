"""Names that MLflow accepts, checked against MLflow's own rule."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.utils import validation
from mlflow.utils.validation import _validate_metric_name, path_not_unique

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.names import METRICS, PARAMS, TAGS, Names, mlflow_name
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from virtual_process import VirtualProcess

_ODD = [
    *("", " ", ".", "..", "/", "//", "a//b", "/a", "a/", "./a", "a/../b", "a/.", "a/./b"),
    *("ndcg@1", "ndcg_1", "ndcg#1", "my metric's%x", "hold out (2024)", "a:b", "ünï", "a\nb"),
    *(
        "x" * 250,
        "x" * 251,
        "..a",
        "...",
        "\ud800",
        "x" * 250 + "@",
        "@" * 300,
        "tr/ain-auc",
        "valid_0-auc",
        "a...b",
    ),
]


@pytest.mark.parametrize("name", _ODD)
@pytest.mark.parametrize("is_windows", [False, True])
def test_mlflow_accepts_every_name(
    monkeypatch: pytest.MonkeyPatch, name: str, is_windows: bool
) -> None:
    monkeypatch.setattr(validation, "is_windows", lambda: is_windows)
    taken = mlflow_name(name, is_windows=is_windows)
    _validate_metric_name(taken)
    assert not path_not_unique(taken)
    assert 0 < len(taken) <= 250


@pytest.mark.parametrize(
    "name", ["valid_0-auc", "tr/ain-auc", "l2", "a...b", "x" * 250, "a b.c", "val:loss", "größe"]
)
def test_a_name_that_mlflow_accepts_is_not_changed(name: str) -> None:
    assert mlflow_name(name) == name


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("valid-ndcg@5", "valid-ndcg_at_5"),  # as MLflow's autologging writes it
        ("a#b", "a_b"),
        ("hold out (2024)", "hold out _2024_"),
        ("a//b", "a/_/b"),
    ],
)
def test_a_name_is_changed_without_a_hash_if_no_other_name_has_it(name: str, taken: str) -> None:
    names = _names()
    assert names.of(METRICS, [name]) == {name: taken}
    assert names.tags({name: "x"}) == {taken: "x", f"mlflow_iap.name.{taken}": name}


def _names(look: Callable[[], Any] | None = None) -> Names:
    return Names(lambda: False, look)


def _found(**data: Any) -> Any:
    return SimpleNamespace(
        data=SimpleNamespace(**{"metrics": {}, "params": {}, "tags": {}, **data})
    )


@pytest.mark.parametrize("together", [True, False])
def test_different_names_stay_different(together: bool) -> None:
    alphabet = ["a", "/", ".", "@", "#", "_", " "]
    parts = {"".join(parts) for n in range(5) for parts in itertools.product(alphabet, repeat=n)}
    given, names = sorted(parts | set(_ODD)), _names()
    found: Mapping[str, str] = (
        names.of(METRICS, given)
        if together
        else {name: names.of(METRICS, [name])[name] for name in given}
    )
    assert len(set(found.values())) == len(given)
    assert names.of(METRICS, given) == found
    if together:  # a name that MLflow accepts comes first
        assert all(found[name] == name for name in given if mlflow_name(name) == name)


def test_metrics_params_and_tags_may_have_the_same_name() -> None:
    names = _names()
    assert names.of(PARAMS, ["a_at_1"]) == {"a_at_1": "a_at_1"}
    assert names.of(METRICS, ["a@1"]) == {"a@1": "a_at_1"}
    # The tag with the original name can have only one.
    assert names.of(TAGS, ["a@1"]) == {"a@1": "a_at_1"}
    assert names.of(TAGS, ["a_at_1"])["a_at_1"] != "a_at_1"


@pytest.mark.parametrize("taken", ["a_at_1", "a_1-e35195"])
def test_a_name_that_the_run_already_has_is_used_again(taken: str) -> None:
    tags = {f"mlflow_iap.name.{taken}": "a@1"}
    names = _names(lambda: _found(metrics={taken: 1.0, "b": 1.0}, tags=tags))
    assert names.of(METRICS, ["a@1", "b"]) == {"a@1": taken, "b": "b"}


def test_a_name_that_already_stands_for_another_one_is_not_used() -> None:
    names = _names(lambda: _found(metrics={"a_at_1": 1.0}))
    (taken,) = names.of(METRICS, ["a@1"]).values()
    assert taken.startswith("a_at_1-")


def test_a_tag_with_another_meaning_changes_no_name() -> None:
    tags = {"mlflow_iap.name.a-b-c-123456": "a-b, c", "mlflow_iap.name.b_at_1": "b@1"}
    names = _names(lambda: _found(tags=tags))
    assert names.of(METRICS, ["b@1"]) == {"b@1": "b_at_1"}
    assert names.of(METRICS, ["a-b-c-123456"]) == {"a-b-c-123456": "a-b-c-123456"}


def test_the_run_is_read_once_and_only_if_a_name_has_to_be_changed() -> None:
    reads = itertools.count()
    names = _names(lambda: (next(reads), _found())[1])
    names.of(METRICS, ["a", "b:c"])
    names.of(METRICS, ["a@1"])
    names.of(METRICS, ["a@2"])
    assert next(reads) == 1


def test_a_resumed_run_keeps_its_names(
    server: FakeMlflow, new_process: Callable[[], VirtualProcess]
) -> None:
    for step, names in enumerate((["a@1", "a_at_1"], ["a@1"], ["a_at_1", "a@1"])):
        process = new_process()
        run = RunWriter(process.client, "id:0", key="key")
        run.log_metrics(dict.fromkeys(names, float(step)), step=step)
        run.finish()
        process.deliver()
        process.die()
    (found,) = server.runs.values()
    (other,) = {name for name, *_ in found.points} - {"a_at_1"}
    assert found.tags[f"mlflow_iap.name.{other}"] == "a@1"
    assert found.curve(other) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert found.curve("a_at_1") == [(0, 0.0), (2, 2.0)]


def test_a_server_on_windows_gets_names_without_colons(
    server: FakeMlflow, process: VirtualProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "is_windows", lambda: True)
    run = RunWriter(process.client, "id:0", key="key", tags={"data:version": "3"})
    run.log_metrics({"val:loss": 1.0, "val_loss": 2.0})
    run.log_params({"net:lr": "0.1"})
    run.log_params({"net:lr": "0.2"})  # is rejected
    run.set_tags({"a:b": "c"})
    process.deliver_for(10.0)
    (found,) = server.runs.values()
    assert (found.tags["data_version"], found.tags["a_b"]) == ("3", "c")
    assert found.params == {"net_lr": "0.1"}
    assert found.curve("val_loss") == [(0, 2.0)]
    originals = {
        name.removeprefix("mlflow_iap.name."): text
        for name, text in found.tags.items()
        if name.startswith("mlflow_iap.name.")
    }
    assert sorted(originals.values()) == ["a:b", "data:version", "net:lr", "val:loss"]
    (loss,) = (taken for taken, name in originals.items() if name == "val:loss")
    assert found.curve(loss) == [(0, 1.0)]


def test_a_resumed_run_on_windows_keeps_its_names(
    server: FakeMlflow,
    new_process: Callable[[], VirtualProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "is_windows", lambda: True)
    for step in range(2):
        process = new_process()
        run = RunWriter(process.client, "id:0", key="key")
        run.log_metrics({"val:loss": float(step)}, step=step)
        process.deliver_for(10.0)
        process.die()
    (found,) = server.runs.values()
    assert found.curve("val_loss") == [(0, 0.0), (1, 1.0)]
