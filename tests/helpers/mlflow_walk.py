"""A program that uses all of MLflow's client, fluent API and tracing, and prints what it got.

Each step prints the same on each server, except for what `normalized` removes. What ends in an
error prints the error. Usage: ``mlflow_walk.py PREFIX``, where the prefix makes all names unique.
"""

# Each step is taken before the next one is made, so a lambda sees the values of its round.
# ruff: noqa: B023

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import (
    Feedback,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
    ViewType,
)

from mlflow_iap_callbacks import IAPMlflowClient

ERRORS = 5  # steps that end in an error on purpose

Step = Callable[[], object]


def all_pages(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    """Everything that a search finds, two at a time."""
    found, token = [], None
    while True:
        page = search(max_results=2, page_token=token, **arguments)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _tags(entity: Any) -> dict[str, str]:
    """Tags, without those that name the machine or the request that created the entity."""
    tags = entity.data.tags if hasattr(entity, "data") else entity.tags
    return {
        name: value
        for name, value in sorted(tags.items())
        if "mlflow_iap." not in name and not name.startswith("mlflow.source")
    }


def _end(operations: Any) -> None:
    operations.wait()


def _run(run: Any) -> list[Any]:
    return [
        *(run.info.run_name, run.info.status, run.info.lifecycle_stage),
        *(run.data.metrics, run.data.params, _tags(run)),
        [
            (each.dataset.name, [tag.value for tag in each.tags])
            for each in run.inputs.dataset_inputs
        ],
        len(run.outputs.model_outputs) if run.outputs else 0,
    ]


def _version(version: Any) -> list[Any]:
    return [str(version.version), version.description, dict(version.tags), sorted(version.aliases)]


def _trace(trace: Any) -> list[Any]:
    info = trace.info
    return [
        *(info.state.value, info.request_preview, info.response_preview),
        {k: v for k, v in sorted(info.tags.items()) if not k.startswith("mlflow.")},
        sorted(k for k in info.trace_metadata),
        sorted((span.name, str(span.inputs), str(span.outputs)) for span in trace.data.spans),
        sorted(
            (each.name, str(each.value), each.rationale, each.valid is not False)
            for each in info.assessments
        ),
    ]


class Walk:
    """The steps, in order.

    Args:
        client: the client to use.
        prefix: beginning of all names.
        folder: an empty folder.
    """

    def __init__(self, client: Any, prefix: str, folder: Path) -> None:
        self.client, self.prefix, self.folder = client, prefix, folder

    def name(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def steps(self) -> Iterator[tuple[str, Step]]:
        for group in (
            *(self.experiments, self.runs, self.artifacts, self.fluent, self.models),
            *(self.registry, self.prompts, self.traces, self.datasets, self.webhooks),
            self.mcp_servers,
        ):
            for number, step in enumerate(group()):
                yield f"{group.__name__} {number}", step

    def experiments(self) -> Iterator[Step]:
        client, name = self.client, self.name
        for number in range(5):
            yield (
                lambda: (
                    client.create_experiment(name(f"e{number}"), tags={"group": self.prefix})
                    and number
                )
            )
        first = client.get_experiment_by_name(name("e0")).experiment_id
        yield lambda: client.create_experiment(name("e0"))
        yield lambda: client.set_experiment_tag(first, "a", "b")
        yield lambda: client.set_experiment_tag(first, "c", "d")
        yield lambda: client.delete_experiment_tag(first, "c")
        yield lambda: client.rename_experiment(first, name("renamed"))
        yield lambda: client.delete_experiment(first)
        yield lambda: client.get_experiment(first).lifecycle_stage
        yield lambda: client.restore_experiment(first)
        yield lambda: [
            (each.name, _tags(each))
            for each in all_pages(
                client.search_experiments,
                filter_string=f"tags.`group` = '{self.prefix}'",
                order_by=["name"],
                view_type=ViewType.ALL,
            )
        ]

    def runs(self) -> Iterator[Step]:
        client = self.client
        experiment = client.create_experiment(self.name("runs"))
        runs = [
            client.create_run(experiment, 1000 + n, {"n": str(n)}, f"run {n}").info.run_id
            for n in range(5)
        ]
        run = runs[0]
        for number in range(20):
            yield lambda: client.log_metric(run, "m", number / 2, 1000 + number, number)
        yield lambda: client.log_param(run, "p", 1)
        yield lambda: client.log_param(run, "p", 2)
        yield lambda: client.set_tag(run, "t", "1")
        yield lambda: client.set_tag(run, "u", "1")
        yield lambda: client.delete_tag(run, "u")
        points = [Metric("b", n, 1000 + n, n) for n in range(30)]
        yield lambda: client.log_batch(run, points, [Param("q", "1")], [RunTag("v", "1")])
        yield lambda: client.log_batch(run, points, synchronous=False).wait()
        data = from_numpy(np.arange(4), name="four")
        source = mlflow.entities.DatasetInput(data._to_mlflow_entity(), [])
        yield lambda: client.log_inputs(run, [source])
        yield lambda: client.update_run(run, name="renamed")
        yield lambda: client.set_terminated(run, "FAILED", 5000)
        yield lambda: client.delete_run(runs[1])
        yield lambda: client.restore_run(runs[1])
        yield lambda: client.delete_run(runs[2])
        yield lambda: [(p.step, p.value) for p in client.get_metric_history(run, "m")]
        yield lambda: len(client.get_metric_history(run, "b"))
        yield lambda: client.get_run("0" * 32)
        yield lambda: [
            _run(each)
            for each in all_pages(
                client.search_runs,
                experiment_ids=[experiment],
                order_by=["tags.n"],
                run_view_type=ViewType.ALL,
            )
        ]

    def artifacts(self) -> Iterator[Step]:
        client, folder = self.client, self.folder
        run = client.create_run(client.create_experiment(self.name("files"))).info.run_id
        (folder / "in").mkdir()
        for number in range(6):
            (folder / "in" / f"{number}.txt").write_text(str(number))
        yield lambda: client.log_artifact(run, str(folder / "in" / "0.txt"))
        yield lambda: client.log_artifacts(run, str(folder / "in"), "all")
        yield lambda: client.log_text(run, "text", "t/text.txt")
        yield lambda: client.log_dict(run, {"a": 1}, "d.json")
        yield lambda: client.log_table(run, {"a": [1, 2]}, "table.json")
        yield lambda: client.log_table(run, {"a": [3]}, "table.json")
        yield lambda: client.log_image(run, np.zeros((2, 2, 3), np.uint8), "i.png")
        yield lambda: sorted(each.path for each in client.list_artifacts(run))
        yield lambda: [each.path for each in client.list_artifacts(run, "all")]
        there = client.download_artifacts(run, "", str(folder))
        yield lambda: sorted(
            (path.relative_to(there).as_posix(), path.stat().st_size)
            for path in Path(there).rglob("*")
            if path.is_file() and "/in/" not in str(path)
        )
        yield lambda: client.download_artifacts(run, "none.txt", str(folder))

    def fluent(self) -> Iterator[Step]:
        experiment = mlflow.set_experiment(self.name("fluent")).experiment_id
        mlflow.set_experiment_tag("x", "y")
        for number in range(3):
            with mlflow.start_run(run_name=f"run {number}") as run:
                yield lambda: mlflow.log_params({"a": number, "b": 2})
                yield lambda: mlflow.log_metrics({"m": 0.5, "n": 1.0}, step=number)
                yield lambda: _end(mlflow.log_metric("async", 1.0, synchronous=False))
                yield lambda: mlflow.set_tags({"t": "1", "u": "2"})
                yield lambda: mlflow.delete_tag("u")
                yield lambda: mlflow.log_input(
                    from_numpy(np.arange(3), name="three"), context="training"
                )
                yield lambda: mlflow.log_text("text", "t.txt")
                yield lambda: mlflow.log_table({"a": [1]}, "table.json")
                with mlflow.start_run(run_name=f"child {number}", nested=True):
                    yield lambda: mlflow.log_metric("m", 2.0)
        yield lambda: mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/t.txt")
        yield lambda: len(mlflow.search_runs([experiment]))
        yield lambda: sorted(
            [each.info.run_name, each.info.status, each.data.metrics, each.data.params]
            for each in mlflow.search_runs([experiment], output_format="list")
        )

    def models(self) -> Iterator[Step]:
        client = self.client
        experiment = mlflow.set_experiment(self.name("models")).experiment_id
        with mlflow.start_run():
            model = mlflow.initialize_logged_model("first", params={"a": "1"}, tags={"t": "1"})
            yield lambda: mlflow.log_model_params({"b": "2"}, model.model_id)
            yield lambda: mlflow.set_logged_model_tags(model.model_id, {"u": "1", "v": "1"})
            yield lambda: mlflow.delete_logged_model_tag(model.model_id, "v")
            yield lambda: mlflow.log_metric("m", 0.5, model_id=model.model_id)
            yield lambda: mlflow.log_outputs([LoggedModelOutput(model.model_id, 0)])
            yield lambda: mlflow.finalize_logged_model(model.model_id, "READY") and None
            (self.folder / "model.txt").write_text("model")
            yield lambda: client.log_model_artifact(model.model_id, str(self.folder / "model.txt"))
            yield lambda: [each.path for each in client.list_logged_model_artifacts(model.model_id)]
            yield (
                lambda: (
                    mlflow.pyfunc.log_model(
                        name="second",
                        python_model=_predict,
                        pip_requirements=[],
                        registered_model_name=self.name("logged"),
                    )
                    and None
                )
            )
        for number in range(3):
            yield (
                lambda: (
                    client.create_logged_model(experiment, f"model {number}", tags={"t": "2"})
                    and None
                )
            )
        third = client.create_logged_model(experiment, "deleted").model_id
        yield lambda: client.finalize_logged_model(third, LoggedModelStatus.FAILED).status.value
        yield lambda: client.delete_logged_model(third)
        yield lambda: sorted(
            [each.name, each.status.value, each.params, _tags(each), len(each.metrics or [])]
            for each in all_pages(client.search_logged_models, experiment_ids=[experiment])
        )
        yield lambda: [
            _version(each)
            for each in client.search_model_versions(f"name = '{self.name('logged')}'")
        ]

    def registry(self) -> Iterator[Step]:
        client, name = self.client, self.name("registered")
        for number in range(3):
            yield lambda: client.create_registered_model(f"{name}{number}", {"a": "b"}, "d").name
        yield lambda: client.create_registered_model(f"{name}0").name
        yield lambda: client.rename_registered_model(f"{name}0", name) and None
        yield lambda: client.update_registered_model(name, "described").description
        yield lambda: client.set_registered_model_tag(name, "t", "1")
        yield lambda: client.set_registered_model_tag(name, "u", "1")
        yield lambda: client.delete_registered_model_tag(name, "u")
        for number in range(4):
            yield lambda: str(
                client.create_model_version(
                    name, f"s3://b/{number}", tags={"n": str(number)}, description="d"
                ).version
            )
        yield lambda: client.update_model_version(name, "1", "described").description
        yield lambda: client.set_model_version_tag(name, "1", "t", "1")
        yield lambda: client.delete_model_version_tag(name, "1", "t")
        yield lambda: client.set_registered_model_alias(name, "champion", "1")
        yield lambda: client.set_registered_model_alias(name, "old", "2")
        yield lambda: client.delete_registered_model_alias(name, "old")
        yield lambda: str(client.get_model_version_by_alias(name, "champion").version)
        yield lambda: client.transition_model_version_stage(name, "2", "Staging").current_stage
        yield lambda: client.get_model_version_download_uri(name, "1")
        yield lambda: client.delete_model_version(name, "3")
        yield lambda: str(client.copy_model_version(f"models:/{name}/1", f"{name}-copy").version)
        yield lambda: [
            _version(each)
            for each in all_pages(
                client.search_model_versions,
                filter_string=f"name = '{name}'",
                order_by=["version_number ASC"],
            )
        ]
        yield lambda: client.delete_registered_model(f"{name}1")
        yield lambda: [
            [each.name, each.description, dict(each.tags), dict(each.aliases)]
            for each in all_pages(
                client.search_registered_models,
                filter_string=f"name LIKE '{name}%'",
                order_by=["name"],
            )
        ]

    def prompts(self) -> Iterator[Step]:
        client, name = self.client, self.name("prompt")
        for number in range(3):
            yield (
                lambda: (
                    mlflow.genai.register_prompt(
                        name, f"Say {{{{x}}}} {number}", f"commit {number}", {"n": str(number)}
                    ).version
                )
            )
        yield lambda: mlflow.genai.set_prompt_alias(name, "best", 2)
        yield lambda: client.set_prompt_tag(name, "t", "1")
        yield lambda: client.set_prompt_version_tag(name, "1", "t", "1")
        yield lambda: client.delete_prompt_version_tag(name, "1", "t")
        yield lambda: mlflow.genai.load_prompt(f"prompts:/{name}@best").template
        yield lambda: client.delete_prompt_version(name, "3")
        yield lambda: [(p.name, p.tags["t"]) for p in client.search_prompts(f"name = '{name}'")]
        yield lambda: client.get_prompt_version(name, "1").commit_message

    def traces(self) -> Iterator[Step]:
        client = self.client
        experiment = mlflow.set_experiment(self.name("traces")).experiment_id
        mlflow.genai.register_prompt(self.name("traced"), "x")

        @mlflow.trace(name="inner", attributes={"a": 1})
        def inner(x: int) -> int:
            return x + 1

        @mlflow.trace(name="outer")
        def outer(x: int) -> int:
            mlflow.update_current_trace(tags={"team": "a"}, metadata={"mlflow.trace.session": "s1"})
            return inner(x) * 2

        ids: list[str] = []
        with mlflow.start_run() as run:
            for number in range(5):
                yield lambda: outer(number)
                ids.append(str(mlflow.get_last_active_trace_id()))
        yield mlflow.flush_trace_async_logging
        first = ids[0]
        feedback: Any = mlflow.log_feedback(
            trace_id=first, name="good", value=True, rationale="because"
        )
        yield lambda: mlflow.log_feedback(trace_id=first, name="score", value=0.5) and None
        yield lambda: mlflow.log_expectation(trace_id=first, name="right", value="x") and None
        yield (
            lambda: (
                mlflow.update_assessment(
                    first, feedback.assessment_id, Feedback(name="good", value=False)
                )
                and None
            )
        )
        yield (
            lambda: (
                mlflow.override_feedback(
                    trace_id=first, assessment_id=feedback.assessment_id, value=True
                )
                and None
            )
        )
        yield lambda: client.set_trace_tag(first, "t", "1")
        yield lambda: client.set_trace_tag(first, "u", "1")
        yield lambda: client.delete_trace_tag(first, "u")
        other = client.create_run(experiment).info.run_id
        yield lambda: client.link_traces_to_run(ids[:2], other)
        prompt = mlflow.genai.load_prompt(f"prompts:/{self.name('traced')}/1")
        yield lambda: client.link_prompt_versions_to_trace([prompt], first)
        root = client.start_trace("manual", inputs={"q": 1})
        span = client.start_span("child", root.trace_id, root.span_id)
        yield lambda: client.end_span(root.trace_id, span.span_id, {"r": 2})
        yield lambda: client.end_trace(root.trace_id, {"r": 3})
        yield mlflow.flush_trace_async_logging
        yield lambda: client.delete_traces(experiment, trace_ids=[ids[4]])
        yield lambda: sorted(
            map(_trace, all_pages(client.search_traces, locations=[experiment])), key=str
        )
        yield lambda: len(client.search_traces(locations=[experiment], run_id=run.info.run_id))
        yield lambda: len(client.search_traces(locations=[experiment], run_id=other))
        yield lambda: _trace(mlflow.get_trace(first))

    def datasets(self) -> Iterator[Step]:
        client, name = self.client, self.name("dataset")
        experiment = client.create_experiment(self.name("datasets"))
        other = client.create_experiment(self.name("datasets, too"))
        dataset = mlflow.genai.create_dataset(name, [experiment], {"t": "1"})
        records = [{"inputs": {"q": n}, "expectations": {"a": n}} for n in range(5)]
        yield lambda: len(dataset.merge_records(records).to_df())
        yield lambda: len(dataset.merge_records(records[:2]).to_df())
        yield lambda: client.set_dataset_tags(dataset.dataset_id, {"u": "1", "v": "1"})
        yield lambda: client.delete_dataset_tag(dataset.dataset_id, "v")
        yield lambda: client.add_dataset_to_experiments(dataset.dataset_id, [other]) and None
        yield lambda: client.remove_dataset_from_experiments(dataset.dataset_id, [other]) and None
        for number in range(3):
            yield lambda: mlflow.genai.create_dataset(f"{name}{number}", [experiment]) and None
        yield lambda: sorted(
            [each.name, _tags(each), len(each.to_df())]
            for each in all_pages(client.search_datasets, experiment_ids=[experiment])
        )
        yield lambda: client.delete_dataset(dataset.dataset_id)
        yield lambda: len(client.search_datasets([experiment]))

    def webhooks(self) -> Iterator[Step]:
        client, name = self.client, self.name("hook")
        for number in range(3):
            yield (
                lambda: (
                    client.create_webhook(
                        *(f"{name}{number}", "https://8.8.8.8/x", ["model_version.created"]),
                        status="DISABLED",
                    ).name
                )
            )

        def mine() -> list[Any]:
            hooks = all_pages(client.list_webhooks)
            return sorted(
                (each for each in hooks if each.name.startswith(self.prefix)),
                key=lambda each: str(each.name),
            )

        yield lambda: [(each.name, each.description) for each in mine()]
        yield lambda: client.update_webhook(mine()[0].webhook_id, description="d").description
        for _ in range(3):
            yield lambda: client.delete_webhook(mine()[-1].webhook_id)
        yield lambda: [(each.name, each.description) for each in mine()]

    def mcp_servers(self) -> Iterator[Step]:
        client = self.client
        if not hasattr(client, "create_mcp_server"):
            return
        name = f"com.example/{self.name('mcp')}"
        yield lambda: client.create_mcp_server(name, "d").name
        for number in range(3):
            server = {"name": name, "version": f"1.0.{number}", "description": "d"}
            yield lambda: client.create_mcp_server_version(server, tools=[]).version
        yield lambda: client.set_mcp_server_tag(name, "t", "1")
        yield lambda: client.set_mcp_server_version_tag(name, "1.0.0", "t", "1")
        yield lambda: client.delete_mcp_server_version_tag(name, "1.0.0", "t")
        yield lambda: client.set_mcp_server_alias(name, "best", "1.0.1")
        yield (
            lambda: (
                client.create_mcp_access_endpoint(name, "https://x.example", server_version="1.0.0")
                and None
            )
        )
        yield lambda: client.update_mcp_server(name, description="e").description
        yield lambda: [
            (each.version, each.tags) for each in client.search_mcp_server_versions(name)
        ]
        yield lambda: [e.url for e in client.search_mcp_access_endpoints(server_name=name)]
        yield lambda: client.delete_mcp_server_version(name, "1.0.2")
        yield lambda: client.delete_mcp_server(name)


def _predict(model_input: list[str]) -> list[str]:
    return model_input


def normalized(text: str, prefix: str) -> str:
    """A text without what differs from server to server: the prefix, ids, and times."""
    text = text.replace(prefix, "PREFIX")
    ids = r"\b(?:[a-z]+-)?[0-9a-f]{32}\b|https?://127[.\d:]+|\d{13}"
    return re.sub(ids, "ID", text)


def main(client: Any, prefix: str) -> dict[str, str]:
    """Take all steps; return what each one got."""
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(client, prefix, Path(folder))
        for name, step in walk.steps():
            try:
                result = repr(step())
            except Exception as error:  # noqa: BLE001
                result = f"{type(error).__name__}: {str(error)[:200]}"
            results[name] = normalized(result, prefix)
    return results


if __name__ == "__main__":
    is_behind_iap = "MLFLOW_TRACKING_AUTH" in os.environ
    print(json.dumps(main((IAPMlflowClient if is_behind_iap else MlflowClient)(), sys.argv[1])))
