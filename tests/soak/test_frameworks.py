"""Keras, PyTorch Lightning and transformers: autologging with and without background logging.

`make frameworks` installs them in a separate environment, and runs this file.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

import equality
import killed_trainings
from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud
from scripts import Script, Start, command, starting
from waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

KERAS = """
import keras

keras.utils.set_random_seed(0)

def new_model():
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dense(1, activation="sigmoid"),
    ])
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model

def train():
    model = new_model()
    model.fit(X, Y, batch_size=20, epochs=6, validation_data=(X, Y), verbose=0)
    return model.predict(X, verbose=0)

def predict(model_id):
    return mlflow.keras.load_model(f"models:/{model_id}").predict(X, verbose=0)

mlflow.keras.autolog()
"""

TENSORFLOW = KERAS.replace("mlflow.keras.", "mlflow.tensorflow.")

LIGHTNING = """
import pytorch_lightning as lightning, torch

torch.manual_seed(0)
torch.set_num_threads(1)
DATA = torch.utils.data.TensorDataset(torch.Tensor(X), torch.Tensor(Y)[:, None])

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, number):
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, number):
        self.log("val_loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

def train():
    stopping = lightning.callbacks.EarlyStopping("val_loss", patience=3, min_delta=0.01)
    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", enable_progress_bar=False, callbacks=[stopping],
        logger=False, log_every_n_steps=1)
    loaders = [torch.utils.data.DataLoader(DATA, 20) for _ in range(2)]
    model = Model()
    trainer.fit(model, *loaders)
    return model(torch.Tensor(X)).detach().numpy()

def predict(model_id):
    model = mlflow.pytorch.load_model(f"models:/{model_id}")
    return model(torch.Tensor(X)).detach().numpy()

mlflow.pytorch.autolog(log_every_n_step=2, checkpoint_save_best_only=False)
"""

# Each of two forked processes trains a copy of the model. The parent logs it in the end.
FORKED = LIGHTNING.replace("max_epochs=6,", 'max_epochs=6, devices=2, strategy="ddp_fork",')

TRANSFORMERS = """
os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = "true"
import torch, transformers

torch.manual_seed(0)
torch.set_num_threads(1)
IDS = torch.randint(0, 50, (40, 6), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row[0] % 2} for row in IDS]

def train():
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8))
    arguments = transformers.TrainingArguments(
        output_dir="saved", num_train_epochs=3, per_device_train_batch_size=10,
        logging_steps=1, eval_strategy="epoch", save_strategy="epoch", report_to=REPORT_TO,
        use_cpu=True, disable_tqdm=True, seed=0)
    trainer = transformers.Trainer(model, arguments, train_dataset=DATA, eval_dataset=DATA)
    trainer.train()
    model.eval()
    return model(IDS).logits.detach().numpy()

def predict(model_id):
    folder = mlflow.artifacts.download_artifacts(f"models:/{model_id}")
    (saved,) = Path(folder, "artifacts").iterdir()
    model = transformers.BertForSequenceClassification.from_pretrained(saved)
    return model(IDS).logits.detach().numpy()
"""

REPORTING = 'REPORT_TO = "mlflow"\n' + TRANSFORMERS
AUTOLOGGED = 'REPORT_TO = "none"\n' + TRANSFORMERS + "mlflow.transformers.autolog()\n"

FRAMEWORKS = [
    pytest.param("keras", KERAS, id="keras"),
    pytest.param("tensorflow", TENSORFLOW, id="tensorflow"),
    pytest.param("pytorch_lightning", LIGHTNING, id="lightning"),
    pytest.param("transformers", REPORTING, id="transformers' callback"),
    pytest.param("transformers", AUTOLOGGED, id="transformers"),
]

# The first lines of each program. Each has a folder of its own, so that relative paths are equal.
IMPORTS = equality.IMPORTS + "os.chdir(tempfile.mkdtemp())\n"

TRAIN = """
with mlflow.start_run(run_name="trained"):
    predicted = train()
    mlflow.log_metric("after", 1)
assert np.allclose(predict(mlflow.last_logged_model().model_id), predicted, atol=1e-6)
"""

TRAIN_FORKED = """
with mlflow.start_run(run_name="trained"):
    train()
    mlflow.log_metric("after", 1)
"""

# It trains when there is a file that says that the server is away.
TRAIN_LATER = """
import time
with mlflow.start_run(run_name="trained"):
    print("begun", flush=True)
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.01)
    begun = time.monotonic()
    predicted = train()
    mlflow.log_metric("after", 1)
    print("trained in", time.monotonic() - begun, "s", flush=True)
np.save(sys.argv[4], predicted)
"""

# After `killed_trainings.IMPORTS`, and before a framework's own part.
NOTED = """
import tempfile
from pathlib import Path
X = np.random.default_rng(0).random((100, 4))
Y = (X[:, 0] > 0.5).astype(int)
mlflow.set_experiment(NAME)
os.chdir(tempfile.mkdtemp())
"""

TRAIN_UNTIL_KILLED = """
while True:
    with mlflow.start_run(run_name="trained"):
        np.save(sys.argv[3], train())
"""

# In another process, the last model of a run predicts what it did in the process that trained it.
LOAD = """
run_id = sys.argv[3]
place = mlflow.get_run(run_id).info.experiment_id
(model, *_) = mlflow.search_logged_models(
    [place], f"source_run_id = '{run_id}'", output_format="list",
    order_by=[{"field_name": "creation_time", "ascending": False}])
assert model.status == "READY"
assert np.allclose(predict(model.model_id), np.load(sys.argv[4]), atol=1e-6)
"""


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path, IMPORTS) as start:
        yield start


@pytest.mark.parametrize(("library", "program"), FRAMEWORKS)
def test_autologging_stores_the_same(
    cloud: LocalCloud, start: Start, name: str, library: str, program: str
) -> None:
    pytest.importorskip(library)
    equality.assert_equal(start, name, program + TRAIN, MLFLOW_TRACKING_AUTH="iap")


def test_autologging_in_forked_processes_stores_the_same(
    cloud: LocalCloud, start: Start, name: str
) -> None:
    pytest.importorskip("pytorch_lightning")
    equality.assert_equal(start, name, FORKED + TRAIN_FORKED, MLFLOW_TRACKING_AUTH="iap")


@pytest.mark.parametrize(("library", "program"), FRAMEWORKS)
def test_autologging_stores_the_same_if_the_server_is_away_during_training(
    cloud: LocalCloud, start: Start, name: str, tmp_path: Path, library: str, program: str
) -> None:
    pytest.importorskip(library)
    outage, predicted = tmp_path / "outage", tmp_path / "predicted.npy"

    def begun(kind: str) -> Script:
        given = (f"{name}-{kind}", kind, str(outage), str(predicted))
        return start(program + TRAIN_LATER, *given, MLFLOW_TRACKING_AUTH="iap", PYTHONHASHSEED="0")

    script = begun("background")
    script.wait_for("begun", 200.0)
    cloud.fault("answer", status=503, times=0)
    outage.touch()
    assert script.end(300.0) == 0, script.err
    assert "left on disk" in script.err
    print(f"{library}, server away: {script.out}")
    cloud.clear_faults()
    done = command("sync")
    assert done.returncode == 0, done.stdout
    _assert_predicts_the_same(start, program, f"{name}-background", predicted)

    script = begun("plain")
    assert script.end(300.0) == 0, script.err
    print(f"{library}, without background logging: {script.out}")
    equality.assert_same(f"{name}-background", f"{name}-plain")


@pytest.mark.parametrize(("library", "program"), FRAMEWORKS)
def test_what_a_killed_training_had_logged_is_in_mlflow_once(
    cloud: LocalCloud, start: Start, name: str, tmp_path: Path, library: str, program: str
) -> None:
    pytest.importorskip(library)
    notes, predicted = tmp_path / "notes", tmp_path / "predicted.npy"
    notes.touch()

    def is_in_second_training() -> bool:
        kinds = [json.loads(line)[0] for line in notes.read_text().splitlines()]
        second = [number for number, kind in enumerate(kinds) if kind == "run"][1:]
        return bool(second) and "metric" in kinds[second[0] :]

    with starting(tmp_path, killed_trainings.IMPORTS) as start_noted:
        given = (name, str(notes), str(predicted))
        script = start_noted(NOTED + program + TRAIN_UNTIL_KILLED, *given)
        wait_until(is_in_second_training, "a metric of the second training", 300.0)
        script.kill()
    done = command("sync")
    assert done.returncode == 0, done.stdout
    assert killed_trainings.wrong(IAPMlflowClient(), name, notes) == []
    _assert_predicts_the_same(start, program, name, predicted)
    print(f"{library}: {len(notes.read_text().splitlines())} acknowledged writes")


def _assert_predicts_the_same(start: Start, program: str, name: str, predicted: Path) -> None:
    """Load the last model of an experiment's first run, and predict with it."""
    runs = mlflow.search_runs(
        experiment_names=[name], order_by=["attributes.start_time ASC"], output_format="list"
    )
    script = start(program + LOAD, name, "plain", runs[0].info.run_id, str(predicted))
    assert script.end(200.0) == 0, script.err
