"""The training step compared with the bare minimum, with parts of it omitted, and with PyTorch's.

    python -m benchmarks.step [--rows torch,bf16] [--batch 16] [--pairs 10] [--json FILE]
    python -m benchmarks.step --list          the rows; most take 3 to 6 minutes

Each side of a row is a process of its own (benchmarks/step_worker.py), so that threads, memory and logical CPUs are
separate. They step in turn on the same random crops; a ratio is of CPU time of the process, A over B, next to the
ratio of wall time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import Rows, argument_parser, chosen, in_turn, ratios
from swav_tf.plumbing.system import lacks_bfloat16

BASE = ("train.precision=float32", "model.batch_norm.synchronised=false", "method.prototypes_frozen_steps=0")


class Worker:
    """A process that does one kind of step on request."""

    def __init__(self, kind: str, overrides: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_worker", kind, *overrides], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **environment},
        )  # fmt: skip

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        print(json.dumps({"do": do, **more}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A worker ended with exit code {self.process.wait()}; its message is above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Side:
    """One of two kinds of step."""

    kind: str
    overrides: tuple[str, ...] = ()

    def worker(self, batch: int) -> Worker:
        return Worker(self.kind, (*BASE, f"train.batch_size={batch}", *self.overrides), {})


@dataclass(frozen=True)
class Row:
    """The ratio of A's time to B's."""

    title: str
    target: str
    a: Side
    b: Side
    measure: Callable[[Side, Side, int, int], dict[str, Any]]  # both sides, batch, number of pairs
    left_out: str = ""  # why it cannot be measured here, if it cannot


def time_in_turn(a: Worker, b: Worker, pairs: int) -> dict[str, Any]:
    """Return the ratios of A to B over pairs of steps."""
    of_b, of_a = in_turn(lambda: b.ask("step"), lambda: a.ask("step"), pairs)
    clocks = ("cpu_s", "wall_s")
    cpu, wall = (ratios([one[clock] for one in of_b], [one[clock] for one in of_a]) for clock in clocks)
    return cpu | {f"wall_{key}": wall[key] for key in ("ratio", "low", "high", "first_ms", "second_ms")}


def time_row(a: Side, b: Side, batch: int, pairs: int) -> dict[str, Any]:
    with a.worker(batch) as worker_a, b.worker(batch) as worker_b:
        return time_in_turn(worker_a, worker_b, pairs)


def torch_row(a: Side, b: Side, batch: int, pairs: int) -> dict[str, Any]:
    """Check that PyTorch's step has the same losses with the same weights, then time it."""
    with a.worker(batch) as other, b.worker(batch) as ours, tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.npz"
        ours.ask("save", path=path)
        other.ask("load", path=path)
        losses = []
        for _ in range(2):  # the second loss depends on what the first step made of the weights
            mine = ours.ask("step")
            losses.append((mine["loss"], other.ask("step", rate=mine["rate"])["loss"]))
        differences = [abs(x / y - 1) for x, y in losses]
        print(f"losses, ours and PyTorch's: {losses}", flush=True)
        if differences[0] > 1e-4 or differences[1] > 1e-2:
            raise SystemExit("The two steps are not the same: there is nothing to compare.")
        return time_in_turn(other, ours, pairs) | {"losses": losses}


def memory_row(a: Side, b: Side, batch: int, pairs: int) -> dict[str, Any]:
    """Return the ratio of the processes' peaks, and of what they need above libraries, weights and crops."""
    peaks, bases = [], []
    for side in (a, b):
        with side.worker(batch) as worker:
            bases.append(worker.ask("peak")["megabytes"])
            for _ in range(3):
                worker.ask("step")
            peaks.append(worker.ask("peak")["megabytes"])
    ratio = peaks[0] / peaks[1]
    return {
        "ratio": ratio, "low": ratio, "high": ratio, "load": os.getloadavg()[0], "peak_mb": peaks,
        "before_mb": bases, "ratio_above_before": (peaks[0] - bases[0]) / (peaks[1] - bases[1]),
    }  # fmt: skip


SWAV, BARE = Side("swav"), Side("bare")
SYNCHRONISED = "model.batch_norm.synchronised=true"


def known_rows(batch: int) -> dict[str, Row]:
    no_bf16 = "this CPU has no instructions for bfloat16" if lacks_bfloat16() else ""
    queue = f"method.queue.length={3840 // batch * batch}"
    bf16 = Side("swav", ("train.precision=mixed_bfloat16",))
    synchronised = Side("swav", ("train.logical_cpus=2", SYNCHRONISED))
    many, few = (Side("swav", (f"model.prototypes={count}",)) for count in (30000, 300))
    return {
        "bare": Row("SwAV step vs. bare forward, backward and update", "<= 1.05", SWAV, BARE, time_row),
        "torch": Row("PyTorch step (channels_last) vs. ours, float32", ">= 1.2", Side("torch"), SWAV, torch_row),
        "bf16": Row("float32 step vs. mixed_bfloat16", ">= 1.4", SWAV, bf16, time_row, no_bf16),
        "replicas": Row("two replicas, synchronized BN, vs. one", "<= 1.08", synchronised, SWAV, time_row),
        "memory": Row(
            "peak memory of a SwAV step vs. bare forward, backward and update", "<= 1.1", SWAV, BARE, memory_row
        ),
        "prototypes": Row("step, 30,000 prototypes vs. 300", "<= 1.03", many, few, time_row),
        "queue": Row("step, queue of 3840 vs. none", "<= 1.02", Side("swav", (queue,)), SWAV, time_row),
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", default="all", help="comma-separated names, or all")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--list", action="store_true", help="list the rows")
    arguments = parser.parse_args()
    batch, pairs = arguments.batch, arguments.pairs
    known, rows = known_rows(batch), Rows(arguments.json)
    for name in chosen(parser, arguments.rows, list(known)):
        row = known[name]
        if row.left_out:
            print(f"{name}: left out, {row.left_out}", flush=True)
            continue
        print(f"{name}: {row.title}", flush=True)
        if not arguments.list:
            found = row.measure(row.a, row.b, batch, pairs) | {"name": name, "batch": batch}
            extra = ("wall_ratio", "ratio_above_before")
            remark = "".join(f", {key} {found[key]:.3g}" for key in extra if key in found)
            rows.add(row.title, row.target, found, remark=f"{remark}, batch {batch}")


if __name__ == "__main__":
    main()
