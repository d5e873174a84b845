"""What watches a training job: metrics, progress, k-NN and the collapse warning, as Keras callbacks."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from swav_tf.data.sources import ImageSource
from swav_tf.knn import knn_accuracy
from swav_tf.method.swav import SwAV
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import RunFolder
from swav_tf.training.features import extract_features
from swav_tf.training.position import Position


class MetricsLog(keras.callbacks.Callback):
    """One line every `log_every_steps` steps and one every epoch; docs/metrics.md explains the fields."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: AnyRecipe,
        position: Position,
        *,
        beside: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """`beside` gives what a step's line has beside the step's measures."""
        super().__init__()
        self.folder, self.recipe, self.position, self.beside = folder, recipe, position, beside
        self._file: TextIO | None = None
        self._board: tf.summary.SummaryWriter | None = None
        self._mark = (time.perf_counter(), position.step)

    def open(self) -> None:
        """Opens the files, where `RunFolder.keep_metrics_until` has cut metrics.jsonl back."""
        self._file = self.folder.metrics.open("a")
        if self.recipe.monitor.tensorboard:
            self._board = tf.summary.create_file_writer(str(self.folder.tensorboard))
            _forget_later_steps(self._board, self.position.step)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._mark = (time.perf_counter(), self.position.step)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Writes a step's line, and an epoch's."""
        position, logs = self.position, logs or {}
        if position.step % self.recipe.monitor.log_every_steps == 0:
            self.write("step", {**logs, **self.beside(), **self._speed()})
        if position.at_epoch_end:
            used = {"prototypes_used": int(np.count_nonzero(position.usage))} if position.usage.size else {}
            self.write("epoch", {**position.means(), **used})
            self._histogram()

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers in TensorBoard under `kind/`."""
        position = self.position
        line = {"kind": kind, "step": position.step, "epoch": position.epoch, **values, "time": time.time()}
        assert self._file is not None
        # JSON has no NaN; a figure that is none is null.
        finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._board is not None:
            with self._board.as_default(step=position.step):
                for key, value in values.items():
                    if isinstance(value, (int, float)):
                        tf.summary.scalar(f"{kind}/{key}", value)
            self._board.flush()

    def image(self, name: str, image: np.ndarray) -> None:
        """A uint8 picture (height, width, 3) in TensorBoard."""
        if self._board is not None:
            with self._board.as_default(step=self.position.step):
                tf.summary.image(name, image[np.newaxis])

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _speed(self) -> dict[str, float]:
        now, (then, step) = time.perf_counter(), self._mark
        self._mark = (now, self.position.step)
        images = (self.position.step - step) * self.recipe.train.batch_size
        return {"images_per_second": images / max(now - then, 1e-9)}

    def _histogram(self) -> None:
        if self._board is not None and self.position.usage.size:
            with self._board.as_default(step=self.position.step):
                tf.summary.histogram("epoch/samples_of_a_prototype", self.position.usage)


def _forget_later_steps(board: tf.summary.SummaryWriter, step: int) -> None:
    """Has TensorBoard drop what earlier files have after this step: a run that was killed writes it again."""
    event = tf.compat.v1.Event(
        wall_time=time.time(),
        step=step + 1 if step else 0,  # from this step on; a run from the start has its picture at step 0
        session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
    )
    with tf.device("CPU:0"):
        # tf.summary has no public way to write an event that is no summary.
        tf.raw_ops.ImportEvent(writer=board._resource, event=event.SerializeToString())


class ShowProgress(keras.callbacks.Callback):
    """Epoch, step, loss beside that of a model that knows nothing, learning rate, images/s, time that is left.

    Args:
        recipe: of the run.
        position: where it stands.
        console: where to; a line at least every `line_seconds` where it is no terminal.
        ignorance: name and value of the loss of a model that knows nothing.
        line_seconds: longest time between two lines.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        position: Position,
        console: Console,
        *,
        ignorance: tuple[str, float],
        line_seconds: float = 10.0,
    ) -> None:
        super().__init__()
        self.recipe, self.position, self.console = recipe, position, console
        self.line_seconds = line_seconds
        self.ignorance = f"{ignorance[0]} {ignorance[1]:.3f}"
        self.loss: float | None = None  # smoothed
        self._began = self._spoke = time.perf_counter()
        self._first_step = position.step
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]} ({task.fields[ignorance]})  lr {task.fields[lr]}  "
                "{task.fields[speed]} images/s"
            ),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock at the second step: the first one traces the graph."""
        if self.position.step == self._first_step + 1:
            self._began = time.perf_counter()
        if self._task is None and self.console.is_terminal:
            fields: dict[str, Any] = self._fields({})
            self._task = self._bar.add_task(
                "", total=self.position.total_steps, completed=self.position.step, **fields
            )
            self._bar.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Shows the step."""
        position, logs = self.position, logs or {}
        if logs["finite"]:
            self.loss = logs["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * logs["loss"]
        fields: dict[str, Any] = self._fields(logs)
        if self._task is not None:
            self._bar.update(self._task, completed=position.step, **fields)
            return
        now = time.perf_counter()
        if now - self._spoke < self.line_seconds and position.step != position.total_steps:
            return
        self._spoke = now
        done = position.step - self._first_step - 1
        left = (now - self._began) / done * (position.total_steps - position.step) if done > 0 else math.nan
        self.console.print(
            f"epoch {fields['epoch']}/{fields['epochs']}  step {position.step}/{position.total_steps}  "
            f"loss {fields['loss']} ({fields['ignorance']})  lr {fields['lr']}  {fields['speed']} images/s  "
            f"{_clock(left)} left",
            highlight=False,
        )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._bar.stop()

    def _fields(self, logs: dict[str, float]) -> dict[str, str]:
        position = self.position
        done = position.step - self._first_step - 1
        speed = done * self.recipe.train.batch_size / max(time.perf_counter() - self._began, 1e-9)
        return {
            "epoch": str(position.epoch + 1),
            "epochs": str(self.recipe.train.epochs),
            "loss": "-" if self.loss is None else f"{self.loss:.3f}",
            "ignorance": self.ignorance,
            "lr": f"{logs.get('learning_rate', 0.0):.4g}",
            "speed": f"{speed:.0f}" if done > 0 else "-",
        }


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


ENOUGH_STEPS = 50  # that the smoothed loss is made of, so that a run which went on is not judged by its first
REMEDIES = (
    "a smaller method.epsilon (0.05 -> 0.03)",
    "a longer freeze (method.prototypes_frozen_steps: 1 to 3 epochs)",
    "fewer prototypes (model.prototypes: about ten a class), or a queue",
    "softer jitter (augment.jitter.*) and crops that keep more of the image",
    "another optimizer.peak_learning_rate",
)


class WarnOfCollapse(keras.callbacks.Callback):
    """Warns once if the loss is still at ln K so many steps after the prototypes were unfrozen."""

    def __init__(self, recipe: Recipe, position: Position, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.position, self.tell = position, tell
        self.ln_k = math.log(recipe.model.prototypes)
        wait = recipe.method.prototypes_frozen_steps + recipe.monitor.collapse_after_steps
        self.look_at = min(wait, position.total_steps)
        self.enough = min(ENOUGH_STEPS, position.total_steps)
        self.seen = 0
        self.looked = False
        self.loss: float | None = None
        self.spread = 1.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Looks once, at a smoothed loss."""
        logs = logs or {}
        if logs["finite"]:
            self.loss = logs["loss"] if self.loss is None else 0.98 * self.loss + 0.02 * logs["loss"]
            self.spread = logs["projection_spread"]
            self.seen += 1
        if self.looked or self.loss is None or self.position.step < self.look_at or self.seen < self.enough:
            return
        self.looked = True
        # Knowing nothing costs ln K; a twentieth below is more than noise and less than learning.
        if self.loss > 0.95 * self.ln_k:
            self.tell(
                f"The loss is {self.loss:.3f} after {self.position.step} steps, and ln K is {self.ln_k:.3f}: "
                f"nothing is learnt yet (projection spread {self.spread:.3f}; 0 is full collapse). "
                "Remedies in order:\n  " + "\n  ".join(f"{i}. {text}" for i, text in enumerate(REMEDIES, 1))
            )


class WatchNeighbours(keras.callbacks.Callback):
    """Every `knn_every_epochs` epochs, on the chief: the other workers wait meanwhile.

    The validation images ask if there are any, else a fifth of the training images; at most
    `knn_images` are taken of each, the same ones every time.
    """

    model: SwAV

    def __init__(
        self,
        recipe: Recipe,
        position: Position,
        source: ImageSource,
        validation: ImageSource | None,
        write: Callable[[str, dict[str, float]], None],
    ) -> None:
        super().__init__()
        self.recipe, self.position, self.write = recipe, position, write
        self.source, self.asking = source, validation or source
        limit, draw = recipe.monitor.knn_images, np.random.default_rng(recipe.train.seed)
        chosen = draw.permutation(len(source))[:limit]
        if validation is None:
            cut = len(chosen) // 5
            self.queries, self.known = np.sort(chosen[:cut]), np.sort(chosen[cut:])
        else:
            self.known = np.sort(chosen)
            self.queries = np.sort(draw.permutation(len(validation))[:limit])
        self.labels = np.array([source.label(int(i)) for i in self.known])
        self.query_labels = np.array([self.asking.label(int(i)) for i in self.queries])
        if min(self.labels.min(initial=0), self.query_labels.min(initial=0)) < 0:
            raise DataError(
                "monitor.knn_every_epochs needs labelled images. Received: images without labels. "
                "Set it to 0, or use data.kind=class_folders."
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Measures at the end of its epochs and of the run."""
        position, monitor = self.position, self.recipe.monitor
        due = (position.epoch + 1) % monitor.knn_every_epochs == 0 or position.step == position.total_steps
        if not (position.at_epoch_end and due):
            return
        known = extract_features(self.model, self.source, self.known, self.recipe.data)
        queries = extract_features(self.model, self.asking, self.queries, self.recipe.data)
        if not (np.isfinite(known).all() and np.isfinite(queries).all()):
            self.position.validation["knn_top1"] = None
            self.write("knn", {"knn_top1": math.nan})  # a figure that is none; the run's own end is another's
            return
        accuracy = knn_accuracy(
            known,
            self.labels,
            queries,
            self.query_labels,
            k=min(monitor.knn_neighbours, len(known)),
            temperature=monitor.knn_temperature,
        )
        self.position.validation["knn_top1"] = accuracy  # a checkpoint keeps it
        self.write("knn", {"knn_top1": accuracy})
