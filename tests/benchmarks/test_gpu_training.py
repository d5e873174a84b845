"""The benchmark of training on a GPU, with workers and commands played: what is timed beside what, and what has failed."""

import subprocess

import pytest

from benchmarks import gpu_training

ROWS = ["fp16", "torch_fp16", "bf16"]


@pytest.fixture
def events(monkeypatch):
    """What happens in turn, with workers that do nothing; torch's row fails."""
    happened = []

    class Played:
        def __init__(self, kind):
            self.kind = kind
            happened.append(f"{kind} starts")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            happened.append(f"{self.kind} has ended")

    def measure(worker, variant, batch, steps):
        happened.append(f"{worker.kind} is timed")
        if worker.kind == "torch":
            raise SystemExit("a worker ended")
        return {"images_per_second": 1.0}

    monkeypatch.setattr(gpu_training, "start", lambda variant, batch: Played(variant.kind))
    monkeypatch.setattr(gpu_training, "measure", measure)
    return happened


# Bugs caught: a worker that builds its model on the GPU while another is timed; a failed row that ends the others.
def test_each_row_has_the_machine_to_itself(events):
    told = {}
    found = gpu_training.measure_all(ROWS, 256, 12, told.__setitem__)
    assert events == [
        f"{kind} {what}" for kind in ("swav", "torch", "swav") for what in ("starts", "is timed", "has ended")
    ]
    assert (
        found
        == told
        == {
            "fp16": {"images_per_second": 1.0},
            "torch_fp16": {"failed": "a worker ended"},
            "bf16": {"images_per_second": 1.0},
        }
    )
    assert gpu_training.measure_all([], 256, 12, told.__setitem__) == {}


# Bug caught: a profile without a figure that counts as done.
@pytest.mark.parametrize(
    ("code", "stdout", "failed", "told"),
    [
        (0, '{"a": 1}', None, {"a": 1}),
        (0, 'warning\n{"a": 1}', "its stdout must be JSON: Expecting value: line 1 column 1 (char 0)", None),
        (0, "", "its stdout must be JSON: Expecting value: line 1 column 1 (char 0)", None),
        (1, '{"a": 1}', "exit code 1", None),
    ],
)
def test_a_command_whose_json_cannot_be_read_has_failed(monkeypatch, code, stdout, failed, told):
    monkeypatch.setattr(
        subprocess, "run", lambda line, **_: subprocess.CompletedProcess(line, code, stdout, "")
    )
    found = gpu_training.command("profile", ["profile", "--json"], 300)
    assert (found.get("failed"), found.get("told")) == (failed, told)
    assert found["command"] == ["profile", "--json"]
