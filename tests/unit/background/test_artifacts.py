"""Artifacts that are copied when they are logged, and uploaded later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from mlflow_iap_callbacks.background import artifacts
from mlflow_iap_callbacks.background.artifacts import BackgroundArtifacts
from mlflow_iap_callbacks.background.writes import Writes


@pytest.fixture
def delivery() -> Iterator[InlineDelivery]:
    delivery = InlineDelivery(has_files=True)
    yield delivery
    delivery.close()


@pytest.fixture
def run(delivery: InlineDelivery) -> FakeRun:
    run_id = delivery.client.create_run("0").info.run_id
    return delivery.server.runs[run_id]


@pytest.fixture
def repository(delivery: InlineDelivery, run: FakeRun, tmp_path: Path) -> BackgroundArtifacts:
    """The run's repository; what is not logged in the background goes to a folder."""
    writes = Writes(delivery.server.uri, lambda: delivery.client, is_strict=False)
    artifacts.use(writes, str(tmp_path / "direct"), run.run_id)
    found = utils._artifact_repos_cache[run.run_id]
    assert isinstance(found, BackgroundArtifacts)
    return found


def test_a_file_is_uploaded_as_it_was_when_it_was_logged(
    delivery: InlineDelivery, run: FakeRun, repository: BackgroundArtifacts, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("first")
    repository.log_artifact(file, "some/where")
    file.write_text("second")
    assert run.artifacts == {}
    assert delivery.sender.flush(60.0)
    assert run.artifacts == {"some/where/notes.txt": b"first"}


def test_a_link_keeps_its_name(
    delivery: InlineDelivery, run: FakeRun, repository: BackgroundArtifacts, tmp_path: Path
) -> None:
    (tmp_path / "target.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "target.txt")
    repository.log_artifact(tmp_path / "link.txt")
    assert delivery.sender.flush(60.0)
    assert run.artifacts == {"link.txt": b"x"}


def test_the_contents_of_a_folder_are_uploaded(
    delivery: InlineDelivery, run: FakeRun, repository: BackgroundArtifacts, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    repository.log_artifacts(folder)
    repository.log_artifacts(folder, "to")
    assert delivery.sender.flush(60.0)
    assert run.artifacts.keys() == {"inner/a.txt", "b.txt", "to/inner/a.txt", "to/b.txt"}


def test_a_list_shows_what_was_logged_before(
    run: FakeRun, repository: BackgroundArtifacts, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    repository.log_artifact(tmp_path / "a.txt")
    repository.list_artifacts()
    assert run.artifacts == {"a.txt": b"a"}


def test_a_path_that_mlflow_rejects_and_a_missing_file_raise_at_once(
    delivery: InlineDelivery, repository: BackgroundArtifacts, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(MlflowException, match="Invalid artifact path"):
        repository.log_artifact(tmp_path / "a.txt", "../up")
    with pytest.raises(FileNotFoundError):
        repository.log_artifact(tmp_path / "missing.txt")
    assert delivery.sender.flush(60.0)


def test_a_file_is_uploaded_at_once_if_the_journal_cannot_take_it(
    delivery: InlineDelivery,
    repository: BackgroundArtifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(delivery.sender.outbox, "copy_artifact", refuse)
    (tmp_path / "a.txt").write_text("a")
    repository.log_artifact(tmp_path / "a.txt")
    assert (tmp_path / "direct" / "a.txt").read_text() == "a"
