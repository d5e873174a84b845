"""MLflow and Weights & Biases: their real packages where installed, with a file store and offline."""

import json

import numpy as np
import pytest

from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.files import load_recipe, save_recipe
from swav_tf.runs.folder import RunFolder
from swav_tf.training import tracking
from swav_tf.training.tracking import Tracking

PICTURE = np.full((8, 8, 3), 200, np.uint8)
SUMMARY = {"loss_last": 1.5, "recipe": "demo", "knn_top1": None}


made = []


class Fake:
    """A tracker that fails from some call on."""

    def __init__(self, folder, recipe, known):
        self.id, self.calls = known or f"id {len(made)}", []
        made.append(self)

    def metrics(self, step, values):
        self.calls.append((step, values))
        if step == 3:
            raise ConnectionError("no server")

    def summary(self, folder, figures):
        self.calls.append(figures)

    def close(self, *, complete):
        self.calls.append(complete)


@pytest.fixture
def run(tmp_path):
    """Begin the tracking of a run in a folder."""

    def run(track):
        recipe = load_recipe("demo", [f"monitor.track={json.dumps(track)}"])
        folder = RunFolder(tmp_path / "a run")
        folder.path.mkdir(exist_ok=True)
        save_recipe(recipe, folder.path / "config.yaml")
        tracked = Tracking(folder, recipe)
        tracked.begin()
        return tracked

    return run


def parts(run, track):
    """Track two parts of a run, the second resumed from step 1, and return the id."""
    first = run([track])
    first.image(0, "crops", PICTURE)
    for step in (1, 2):
        first.metrics(step, "step", {"loss": 5.0 - step, "gradient_norm": float("nan")})
    first.close(complete=False)
    second = run([track])
    for step in (2, 3):
        second.metrics(step, "step", {"loss": 5.0 - step})
    (second.folder.path / "summary.json").write_text(json.dumps(SUMMARY))
    second.summary(SUMMARY)
    second.close(complete=True)
    return json.loads((second.folder.path / tracking.IDS).read_text())[track]


# Bugs caught: a server that ends a training, a warning at every step, a resumed run that is tracked as a new one.
def test_a_tracker_that_fails(run, logged, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Fake)
    made.clear()
    tracked = run(["mlflow"])
    for step in (1, 2, 3, 4):
        tracked.metrics(step, "step", {"loss": 2.0, "note": None})
    tracked.summary(SUMMARY)
    tracked.close(complete=True)
    assert made[0].calls == [(step, {"step/loss": 2.0}) for step in (1, 2, 3)]
    [(level, text)] = logged
    assert level == "WARNING"
    assert "mlflow failed and receives nothing more" in text
    assert run(["mlflow"]).trackers["mlflow"].id == "id 0"


def test_a_tracker_that_cannot_start(run, monkeypatch):
    def refuse(*arguments):
        raise ValueError("no key")

    monkeypatch.setitem(tracking.TRACKERS, "wandb", refuse)
    with pytest.raises(SwavError, match=r"wandb cannot start: no key"):
        run(["wandb"])


# Bugs caught: a resumed run that is tracked twice or whose parameters clash, steps, picture, recipe or summary that are lost.
def test_mlflow(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    known = parts(run, "mlflow")
    client = mlflow.MlflowClient()
    [found] = client.search_runs(["0"])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (known, "a run", "FINISHED")
    assert found.data.params["optimizer.peak_learning_rate"] == "4.0"
    assert found.data.metrics["summary/loss_last"] == 1.5
    steps = {(metric.step, metric.value) for metric in client.get_metric_history(known, "step/loss")}
    assert steps == {(1, 4.0), (2, 3.0), (3, 2.0)}
    files = {artifact.path for artifact in client.list_artifacts(known)}
    assert {"config.yaml", "summary.json", "images"} <= files


def test_wandb(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    known = parts(run, "wandb")
    first, second = sorted((tmp_path / "a run" / "wandb").glob(f"offline-run-*-{known}"))
    assert list(first.glob("files/media/images/crops*.png"))
    logged = [(folder / f"run-{known}.wandb").read_bytes() for folder in (first, second)]
    for words, which in (
        (b"peak_learning_rate", 0),
        (b"step/loss", 0),
        (b"step/loss", 1),
        (b"summary/loss_last", 1),
    ):
        assert words in logged[which]
