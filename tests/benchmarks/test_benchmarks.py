"""The benchmarks' own arithmetic, and what happens to rows that fail."""

import json

from benchmarks import gpu
from benchmarks.common import Rows, in_turn, ratios


# Bugs caught: the first call counted; one side always first; the ratio upside down.
def test_pairs() -> None:
    calls = []
    first, second = in_turn(lambda: calls.append("A") or 2.0, lambda: calls.append("B") or 6.0, 3)
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB"
    found = ratios(first, second)
    assert (found["ratio"], found["first_ms"], found["second_ms"], found["pairs"]) == (3.0, 2000, 6000, 3)


def test_rows_are_kept_by_name(tmp_path) -> None:
    path = tmp_path / "rows.json"
    for name, ratio in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        Rows(path).add(name, ">= 1", ratios([1.0, 1.0], [ratio, ratio]))
    rows = json.loads(path.read_text())["rows"]
    assert {name: row["ratio"] for name, row in rows.items()} == {"a": 3.0, "b": 2.0}


# Bugs caught: a worker that builds its model on the GPU while another is timed; a failed row that ends the others.
def test_each_row_has_the_gpu_to_itself(monkeypatch) -> None:
    events, rows = [], {}

    class Worker:
        def __init__(self, kind, overrides, environment):
            self.kind = kind
            events.append(f"{kind} starts")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            events.append(f"{self.kind} ends")

    def measure(worker, images, steps):
        events.append(f"{worker.kind} is timed")
        if worker.kind == "torch":
            raise SystemExit("a worker ended")
        return {"batch": images}

    monkeypatch.setattr(gpu, "Worker", Worker)
    monkeypatch.setattr(gpu, "measure", measure)
    gpu.measure_all(["fp16", "torch_fp16", "fp16_quarter_batch"], 256, 12, rows.__setitem__)
    assert events == [
        f"{kind} {what}" for kind in ("swav", "torch", "swav") for what in ("starts", "is timed", "ends")
    ]
    assert list(rows.values()) == [{"batch": 256}, {"failed": "a worker ended"}, {"batch": 64}]
