"""The comparison of the demo of two workers; the demo itself takes minutes and is run by hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from swav_tf.runs.checkpoint import CheckpointStore

PATH = Path(__file__).parents[2] / "deploy" / "cluster_demo.py"


@pytest.fixture(scope="module")
def demo():
    specification = importlib.util.spec_from_file_location("cluster_demo", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(folder, weights, resumed_from_step):
    CheckpointStore(folder / "checkpoints", kind="pretrain").write(88, {"w": np.float32(weights)}, {})
    summary = {"steps": 88, "loss_last": 2.5, "knn_top1": None, "prototypes_used": 50}
    (folder / "summary.json").write_text(json.dumps(summary | {"resumed_from_step": resumed_from_step}))
    return folder


# Bugs caught: a demo that always reports equal weights; one that passes at a small difference, though sums of two
# workers commute; one that trained the same weights a second time from the beginning.
@pytest.mark.parametrize(
    ("weights", "resumed_from_step", "same", "message"),
    [
        ([1.0, 2.0], 43, True, "Every weight is equal, bit for bit."),
        ([1.0, 2.001], 43, False, "1 of 1 arrays of the last checkpoints differ: w."),
        ([1.0], 43, False, "1 of 1 arrays of the last checkpoints differ: w."),
        ([1.0, 2.0], None, False, "The killed run started over"),
    ],
)
def test_two_runs_are_compared(demo, tmp_path, capsys, weights, resumed_from_step, same, message):
    one, other = run(tmp_path / "a", [1.0, 2.0], None), run(tmp_path / "b", weights, resumed_from_step)
    assert demo.compare(one, other) == same
    output = capsys.readouterr().out
    assert message in output
    assert str(resumed_from_step or "-") in output


def test_steps_are_counted_while_a_line_is_written(demo, tmp_path):
    assert demo.steps_done(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"ste')
    assert demo.steps_done(tmp_path) == 4
