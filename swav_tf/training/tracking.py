"""MLflow and Weights & Biases: the metrics, recipe, pictures and summary of a run, next to TensorBoard.

Their own settings decide where, such as MLFLOW_TRACKING_URI, WANDB_PROJECT and WANDB_MODE.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from swav_tf.plumbing.errors import SwavError, UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.log import log
from swav_tf.plumbing.values import flatten
from swav_tf.recipe.files import AnyRecipe
from swav_tf.runs.folder import RunFolder

IDS = "tracked.json"  # in the run folder: the id of the tracked run by tracker, so that a resumed run continues it
STEP = "optimizer_step"  # W&B's own steps must rise, and those of a resumed run do not


class _Mlflow:
    """A run of MLflow, new or that of an id; `Tracking` explains its methods, and those of the next class."""

    def __init__(self, folder: RunFolder, recipe: AnyRecipe, known: str | None) -> None:
        self.mlflow = importlib.import_module("mlflow")
        name, nested = folder.path.absolute().name, self.mlflow.active_run() is not None
        run = self.mlflow.start_run(run_id=known, run_name=None if known else name, nested=nested)
        self.id = str(run.info.run_id)
        if known is None:  # parameters cannot change; the settings of a resumed run are in its config.yaml
            self.mlflow.log_params(flatten(recipe.model_dump(mode="json")))
        self.mlflow.log_artifact(str(folder.path / "config.yaml"))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self.mlflow.log_image(image, key=name, step=step)

    def summary(self, folder: RunFolder, figures: Mapping[str, Any]) -> None:
        self.mlflow.log_metrics({f"summary/{key}": value for key, value in _numbers(figures).items()})
        self.mlflow.log_artifact(str(folder.path / "summary.json"))

    def close(self, *, complete: bool) -> None:
        self.mlflow.end_run("FINISHED" if complete else "KILLED")


class _Wandb:
    """A run of Weights & Biases, new or that of an id."""

    def __init__(self, folder: RunFolder, recipe: AnyRecipe, known: str | None) -> None:
        self.wandb = importlib.import_module("wandb")
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "swav-tf"),
            name=folder.path.absolute().name,
            id=known,
            resume="allow",
            dir=folder.path,
            config=recipe.model_dump(mode="json"),
            allow_val_change=True,
            settings=self.wandb.Settings(console="off", silent=True),
        )
        self.id = str(self.run.id)
        if not self.run.offline and self.run.url:
            log.info("wandb: %s", self.run.url)
        self.run.define_metric(STEP, hidden=True)
        self.run.define_metric("*", step_metric=STEP)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, STEP: step})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({name: self.wandb.Image(image), STEP: step})

    def summary(self, folder: RunFolder, figures: Mapping[str, Any]) -> None:
        self.run.summary.update({f"summary/{key}": value for key, value in figures.items()})

    def close(self, *, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


TRACKERS: dict[str, type[_Mlflow | _Wandb]] = {"mlflow": _Mlflow, "wandb": _Wandb}


class Tracking:
    """The trackers that a recipe names, or none. A tracker that fails during a run is logged and dropped."""

    def __init__(self, folder: RunFolder, recipe: AnyRecipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.trackers: dict[str, _Mlflow | _Wandb] = {}

    def begin(self) -> None:
        """Begin the tracked runs, or continue those whose ids are in the run folder.

        Raises:
            SwavError: a tracker cannot start; the message is its own.
        """
        path = self.folder.path / IDS
        ids = json.loads(path.read_text()) if path.exists() else {}
        for name in self.recipe.monitor.track:
            if name in self.trackers:
                continue
            try:
                self.trackers[name] = TRACKERS[name](self.folder, self.recipe, ids.get(name))
            except Exception as error:  # of any kind: they are another program's
                raise SwavError(
                    f"{name} cannot start: {error}\nCheck its configuration (docs/metrics.md), or remove it from "
                    "--track."
                ) from error
        if self.trackers:
            ids |= {name: tracker.id for name, tracker in self.trackers.items()}
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(ids) + "\n")

    def metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Log the numbers of a line of metrics.jsonl as `kind/field`."""
        numbers = {f"{kind}/{key}": value for key, value in _numbers(values).items()}
        self._each(lambda tracker: tracker.metrics(step, numbers))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log a uint8 image (height, width, 3)."""
        self._each(lambda tracker: tracker.image(step, name, image))

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Log the content of summary.json."""
        self._each(lambda tracker: tracker.summary(self.folder, figures))

    def close(self, *, complete: bool) -> None:
        """End the tracked runs; one that is not complete can be continued."""
        self._each(lambda tracker: tracker.close(complete=complete))
        self.trackers.clear()

    def _each(self, use: Callable[[_Mlflow | _Wandb], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                use(tracker)
            except Exception as error:  # a server that cannot be reached must not end a training
                del self.trackers[name]
                log.warning(
                    "%s failed and receives nothing more of this run: %s. Training continues; metrics.jsonl is "
                    "complete.",
                    name,
                    error,
                )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and np.isfinite(value)
    }


def check_installed(track: tuple[str, ...]) -> None:
    """Check that the packages of trackers are installed."""
    for name in track:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{name} is not installed. Run: pip install 'swav-tf[{name}]'")
