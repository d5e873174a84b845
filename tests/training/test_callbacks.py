import io
import math
from contextlib import nullcontext

import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from swav_tf.runs.folder import RunFolder
from swav_tf.training import progress
from swav_tf.training.callbacks import Collapsed, CollapseWarning, MetricsLog
from swav_tf.training.position import Position, UpdatePosition
from swav_tf.training.progress import ShowProgress
from tests.swav_models import tiny_recipe
from tests.training.runs import lines

LN_K = math.log(12)


# Bugs caught: a collapse without a warning; a warning while the prototypes are frozen, at every step, or for a run
# that learns; a run too short for the wait that is never judged.
@pytest.mark.parametrize(("steps", "warned_at"), [(1000, 200), (4000, 300), (60, 60)])
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
        level == "WARNING" and "1. a smaller epsilon: -o method.epsilon=0.01 (instead of 0.05)" in text
        for level, text in logged
    )


# Bug caught: a run of a few steps, which cannot learn, that starts over three times.
@pytest.mark.parametrize(("steps", "rescued"), [(60, False), (1000, True)])
def test_only_a_run_that_had_time_to_learn_starts_over(logged, steps, rescued):
    recipe = tiny_recipe(method__prototypes_frozen_steps=100, monitor__collapse_after_steps=200)
    position = Position(steps, steps)
    callback = CollapseWarning(recipe, position, lambda found: found[0])
    with pytest.raises(Collapsed) if rescued else nullcontext():
        for position.step in range(1, steps + 1):
            callback.on_train_batch_end(0, {"loss": LN_K, "finite": 1.0, "projection_spread": 0.1})
    assert len(logged) == (not rescued)


# Bug caught: a moving average that starts at the first loss: after 60 steps of learning it is a third of the average.
def test_a_high_first_loss_raises_no_false_alarm(logged):
    position = Position(60, 60)
    callback = CollapseWarning(tiny_recipe(), position)
    for position.step in range(1, 61):
        loss = 4 * LN_K if position.step == 1 else 0.85 * LN_K
        callback.on_train_batch_end(0, {"loss": loss, "finite": 1.0, "projection_spread": 0.5})
    assert callback.checked
    assert not logged


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


# Bug caught: the accuracy of an earlier epoch in the summary of a run that has not been measured since.
def test_a_measurement_is_of_its_own_step():
    position = Position(5, 20)
    position.validation = {"knn_top1": 0.9, "view_retrieval": 0.8, "knn_top1_initial": 0.5}
    UpdatePosition(position, ["loss"]).on_train_batch_end(0, {"loss": 1.0, "finite": 1.0})
    assert position.validation == {"knn_top1_initial": 0.5}


def show_steps(clock, recipe, *, step_seconds, evaluated=()):
    """Show 4 epochs of 5 steps; `evaluated` epochs end with a k-NN accuracy."""
    position = Position(5, 20)
    shown = ShowProgress(recipe, position, chance=("ln K", LN_K))
    update, stages = UpdatePosition(position, ["loss"]), {}
    shown.on_train_begin()
    for step in range(20):
        stages.setdefault(shown.stage, step)
        shown.on_train_batch_begin(step)
        clock.now += step_seconds
        logs = {"loss": float(step), "finite": 1.0, "learning_rate": 0.5}
        update.on_train_batch_end(step, logs)
        shown.on_train_batch_end(step, logs)
        if position.at_epoch_end:
            if position.epoch + 1 in evaluated:
                position.measured["k-NN"] = 0.5
            shown.on_epoch_end(position.epoch)
    shown.close()
    return stages


# Bugs caught: an epoch without a line, or short epochs that flood the screen; the loss of a step or a smoothed one as
# that of the epoch; an accuracy of an earlier epoch; a speed that includes the first step, which compiles.
def test_a_line_for_each_epoch(logged, monkeypatch):
    clock, recipe = Clock(monkeypatch), tiny_recipe(train__epochs=4)
    show_steps(clock, recipe, step_seconds=1.0, evaluated=[2])
    batch = recipe.train.batch_size
    assert [text for _, text in logged] == [
        f"epoch 1/4  loss 2.000 (ln K 2.485)  {batch} images/s  0:00:05  0:00:15 left",
        f"epoch 2/4  loss 7.000 (ln K 2.485)  k-NN 50.0 %  {batch} images/s  0:00:05  0:00:10 left",
        f"epoch 3/4  loss 12.000 (ln K 2.485)  {batch} images/s  0:00:05  0:00:05 left",
        f"epoch 4/4  loss 17.000 (ln K 2.485)  {batch} images/s  0:00:05",
    ]
    logged.clear()
    show_steps(clock, recipe, step_seconds=0.3, evaluated=[3])
    assert [text.split()[1] for _, text in logged] == ["2/4", "3/4", "4/4"]


# Bugs caught: a long epoch without a sign of life in a log; a bar in a log file; a terminal without one.
def test_within_an_epoch(logged, monkeypatch):
    clock, output = Clock(monkeypatch), io.StringIO()
    for terminal in (False, True):
        console = Console(file=output, force_terminal=terminal, width=120)
        monkeypatch.setattr(progress, "console", lambda console=console: console)
        show_steps(clock, tiny_recipe(train__epochs=4), step_seconds=20.0)
        steps = [text.split("  ")[1] for _, text in logged if "step" in text]
        assert steps == ([] if terminal else [f"step {n}/20" for n in (2, 4, 7, 9, 12, 14, 17, 19)])
        assert bool(output.getvalue()) == terminal
        logged.clear()
    for part in ("training", "epoch 4/4", "20/20", "smoothed loss", "lr 0.5", "images/s"):
        assert part in output.getvalue()


# Bug caught: a phase that is shown too long, too short or not at all.
def test_stages(monkeypatch):
    queue = {"length": 128, "from_epoch": 2}
    recipe = tiny_recipe(
        train__epochs=4,
        train__batch_size=64,
        optimizer__warmup_epochs=1,
        method__prototypes_frozen_steps=3,
        method__queue=queue,
    )
    stages = show_steps(Clock(monkeypatch), recipe, step_seconds=1.0)
    assert stages == {"compiling": 0, "freeze, warm-up": 1, "warm-up": 3, "training": 5, "queue filling": 10}


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
