import io
import math

import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from swav_tf.runs.folder import RunFolder
from swav_tf.training import callbacks
from swav_tf.training.callbacks import CollapseWarning, MetricsLog, ProgressBar
from swav_tf.training.position import Position
from tests.swav_models import tiny_recipe
from tests.training.runs import lines

LN_K = math.log(12)


# Bugs caught: a collapse without a warning; a warning while the prototypes are frozen, at every step, or for a run
# that learns; a run too short for the wait that is never judged.
@pytest.mark.parametrize(("steps", "warned_at"), [(1000, 300), (60, 60)])
@pytest.mark.parametrize(("last_loss", "warnings"), [(LN_K + 0.4, 1), (0.99 * LN_K, 1), (0.8 * LN_K, 0)])
def test_collapse_is_warned_about_once(logged, steps, warned_at, last_loss, warnings):
    recipe = tiny_recipe(method__prototypes_frozen_steps=100, monitor__collapse_after_steps=200)
    position, found = Position(steps, steps), []
    callback = CollapseWarning(recipe, position)
    for position.step in range(1, min(steps, 600) + 1):
        loss = LN_K + (last_loss - LN_K) * min(position.step / min(steps / 10, 150), 1)
        callback.on_train_batch_end(0, {"loss": loss, "finite": 1.0, "projection_spread": 0.1})
        found += [position.step] * (len(logged) - len(found))
    assert found == [warned_at] * warnings
    assert all(
        level == "WARNING" and "1. a smaller epsilon: -o method.epsilon=0.03, now 0.05" in text
        for level, text in logged
    )


# Bug caught: a moving average that starts at the first loss: after 60 steps of learning it is a third of the average.
def test_a_high_first_loss_raises_no_false_alarm(logged):
    position = Position(60, 60)
    callback = CollapseWarning(tiny_recipe(), position)
    for position.step in range(1, 61):
        loss = 4 * LN_K if position.step == 1 else 0.85 * LN_K
        callback.on_train_batch_end(0, {"loss": loss, "finite": 1.0, "projection_spread": 0.5})
    assert callback.checked
    assert not logged


def show_steps(**options):
    position = Position(10, 20)
    bar = ProgressBar(tiny_recipe(train__epochs=2), position, chance=("ln K", LN_K), **options)
    for step in range(20):
        bar.on_train_batch_begin(step)
        position.step += 1
        bar.on_train_batch_end(step, {"loss": 2.0, "finite": 1.0, "learning_rate": 0.5})
    bar.close()


# Bugs caught: a bar in a log file, a line at every step, no last line; a terminal without a bar.
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(logged, monkeypatch):
    output = io.StringIO()
    for terminal in (False, True):
        console = Console(file=output, force_terminal=terminal, width=160)
        monkeypatch.setattr(callbacks, "console", lambda console=console: console)
        show_steps(line_seconds=1000)
        assert bool(output.getvalue()) == terminal
    [(_, line)] = logged
    assert line.startswith("epoch 2/2  step 20/20  smoothed loss 2.000 (ln K 2.485)  lr 0.5  ")
    assert line.endswith(" images/s  0:00:00 left")
    for part in ("epoch 2/2", "20/20", "smoothed loss 2.000 (ln K 2.485)", "lr 0.5", "images/s"):
        assert part in output.getvalue()


# Bugs caught: steps that appear twice in TensorBoard after a kill, or are lost at a checkpoint; a run from the start
# that keeps what was written before its first checkpoint.
def test_repeated_steps_appear_once(tmp_path):
    position, expected = Position(10, 20), {}
    # Killed before the first checkpoint, then after steps 3 and 4, which the checkpoint of step 2 does not contain.
    for first, last, loss in ((1, 3, 1.0), (1, 4, 2.0), (3, 5, 3.0)):
        position.step = first - 1
        folder = RunFolder(tmp_path)
        folder.keep_metrics_until(position.step)
        metrics = MetricsLog(folder, tiny_recipe(monitor__tensorboard=True), position)
        metrics.on_train_begin()
        for position.step in range(first, last + 1):
            metrics.write("step", {"loss": loss})
        metrics.close()
        expected = {step: value for step, value in expected.items() if step < first}
        expected |= {step: loss for step in range(first, last + 1)}
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("step/loss")
        assert [(e.step, tf.make_ndarray(e.tensor_proto).item()) for e in events] == list(expected.items())
        assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == list(expected.items())
