import io
import math

import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from swav_tf.runs.folder import RunFolder
from swav_tf.training.callbacks import MetricsLog, ShowProgress, WarnOfCollapse
from swav_tf.training.position import Position
from tests.swav_models import tiny_recipe
from tests.training.runs import lines

LN_K = math.log(12)


# Bugs caught: a collapse that nobody is told of, a warning while the prototypes are frozen, one at every step,
# one for a run that learns.
@pytest.mark.parametrize(("last_loss", "warnings"), [(LN_K + 0.4, 1), (0.99 * LN_K, 1), (0.8 * LN_K, 0)])
def test_a_loss_that_stays_at_ln_k_is_warned_about_once(last_loss, warnings):
    recipe = tiny_recipe(method__prototypes_frozen_steps=100, monitor__collapse_after_steps=200)
    position, told = Position(1000, 1000), []
    callback = WarnOfCollapse(recipe, position, lambda text: told.append((position.step, text)))
    for step in range(1, 600):
        position.step = step
        loss = LN_K + (last_loss - LN_K) * min(step / 150, 1)
        callback.on_train_batch_end(0, {"loss": loss, "finite": 1.0, "projection_spread": 0.1})
    assert [step for step, _ in told] == [300] * warnings
    # A run too short for that is judged at its end.
    short, told = Position(10, 60), []
    callback = WarnOfCollapse(recipe, short, lambda text: told.append((short.step, text)))
    for step in range(1, 61):
        short.step = step
        callback.on_train_batch_end(0, {"loss": last_loss, "finite": 1.0, "projection_spread": 0.1})
    assert [step for step, _ in told] == [60] * warnings
    assert all("1. a smaller method.epsilon" in text for _, text in told)


# Bugs caught: a bar on a file, a line every step, no last line.
def test_lines_where_there_is_no_terminal():
    recipe, position, output = tiny_recipe(train__epochs=2), Position(10, 20), io.StringIO()
    console = Console(file=output, force_terminal=False, width=200)
    callback = ShowProgress(recipe, position, console, ignorance=("ln K", LN_K), line_seconds=1000)
    for step in range(20):
        callback.on_train_batch_begin(step)
        position.step += 1
        callback.on_train_batch_end(step, {"loss": 2.0, "finite": 1.0, "learning_rate": 0.5})
    [line] = output.getvalue().splitlines()
    assert line.startswith("epoch 2/2  step 20/20  loss 2.000 (ln K 2.485)  lr 0.5  ")
    assert line.endswith("images/s  0:00 left")


# Bug caught: a terminal that is left without a bar, or a bar without the figures that matter.
def test_a_bar_on_a_terminal():
    recipe, position, output = tiny_recipe(train__epochs=2), Position(10, 20), io.StringIO()
    console = Console(file=output, force_terminal=True, width=160)
    callback = ShowProgress(recipe, position, console, ignorance=("ln K", LN_K))
    for step in range(20):
        callback.on_train_batch_begin(step)
        position.step += 1
        callback.on_train_batch_end(step, {"loss": 2.0, "finite": 1.0, "learning_rate": 0.5})
    callback.close()
    for part in ("epoch 2/2", "20/20", "loss 2.000 (ln K 2.485)", "lr 0.5", "images/s"):
        assert part in output.getvalue()


def in_tensorboard(folder):
    """(step, value) of the loss, as TensorBoard has it."""
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, tf.make_ndarray(event.tensor_proto).item()) for event in events.Tensors("step/loss")]


# Bugs caught: steps that stand twice in TensorBoard after a kill, one that is lost at a checkpoint, a run from the
# start that keeps what was before its first checkpoint.
def test_steps_that_are_written_again_stand_once(tmp_path):
    position = Position(10, 20)

    def train(first, last, loss):
        position.step = first - 1
        folder = RunFolder(tmp_path)
        folder.keep_metrics_until(position.step)
        log = MetricsLog(folder, tiny_recipe(monitor__tensorboard=True), position)
        log.open()
        for step in range(first, last + 1):
            position.step = step
            log.write("step", {"loss": loss})
        log.close()

    expected = {}
    # Killed before the first checkpoint; killed after steps 3 and 4, of which the checkpoint of step 2 knows nothing.
    for first, last, loss in ((1, 3, 1.0), (1, 4, 2.0), (3, 5, 3.0)):
        train(first, last, loss)
        expected = {step: value for step, value in expected.items() if step < first}
        expected |= {step: loss for step in range(first, last + 1)}
        assert in_tensorboard(tmp_path / "tensorboard") == list(expected.items())
        assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == list(expected.items())
