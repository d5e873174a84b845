"""The training step against what it cannot do without, against its parts left out, and against PyTorch's.

    python -m benchmarks.step [--rows torch,bf16] [--batch 16] [--pairs 10] [--json FILE]
    python -m benchmarks.step --list          what there is, and how long each takes

Each side of a row is a process of its own (benchmarks/step_worker.py), so that neither's threads, memory or
logical CPUs are the other's. They step in turn on the same random crops; a ratio is of CPU time of the whole
process, beside it the ratio of wall time. A row that is done is written at once, and not done again: an
interrupted benchmark goes on. `--again` does it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import Comparison, compare
from swav_tf.plumbing.system import lacks_bfloat16

BASE = (
    "train.precision=float32",
    "model.batch_norm.synchronised=false",
    "method.prototypes_frozen_steps=0",
)
RESULTS = Path(__file__).with_name("results") / "step.json"
SECONDS_AN_IMAGE = 0.35  # of a SwAV step on two cores that do nothing else
START_MINUTES = 1.5  # imports and traces of two processes


class Worker:
    """A process that does one kind of step when it is told to."""

    def __init__(self, kind: str, overrides: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_worker", kind, *overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        )

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended (exit code {self.process.wait()}); its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Side:
    """One of two kinds of step."""

    kind: str
    overrides: tuple[str, ...] = ()
    cost: float = 1.0  # of a SwAV step, about

    def worker(self, batch: int) -> Worker:
        return Worker(self.kind, (*BASE, f"train.batch_size={batch}", *self.overrides))


@dataclass(frozen=True)
class Row:
    """The ratio of A's time to B's."""

    title: str
    target: str
    a: Side
    b: Side
    run: Callable[[Row, int, int], dict[str, Any]]
    left_out: str = ""  # why it cannot be measured here, if it cannot

    def minutes(self, batch: int, pairs: int) -> float:
        return START_MINUTES + (pairs + 1) * (self.a.cost + self.b.cost) * SECONDS_AN_IMAGE * batch / 60


def timed_in_turn(a: Worker, b: Worker, pairs: int) -> dict[str, Any]:
    """Ratios of A to B over pairs of steps, each in turn first; one step of each before does not count."""
    times: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    for worker in (a, b):
        worker.ask("step")
    for pair in range(pairs):
        order = (("a", a), ("b", b)) if pair % 2 == 0 else (("b", b), ("a", a))
        for name, worker in order:
            times[name].append(worker.ask("step"))
    found: dict[str, Any] = {"pairs": pairs, "load": os.getloadavg()[0]}
    for clock, prefix in (("cpu_s", ""), ("wall_s", "wall_")):
        ratios = [x[clock] / y[clock] for x, y in zip(times["a"], times["b"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
        found |= {f"{prefix}ratio": median, f"{prefix}low": low, f"{prefix}high": high}
        for name in ("a", "b"):
            found[f"{prefix}{name}_ms"] = 1000 * statistics.median(time[clock] for time in times[name])
    return found


def time_row(row: Row, batch: int, pairs: int) -> dict[str, Any]:
    with row.a.worker(batch) as a, row.b.worker(batch) as b:
        return timed_in_turn(a, b, pairs)


def torch_row(row: Row, batch: int, pairs: int) -> dict[str, Any]:
    """PyTorch's step has the same weights and gives the same losses before it is timed."""
    with row.a.worker(batch) as theirs, row.b.worker(batch) as ours, tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.npz"
        ours.ask("save", path=path)
        theirs.ask("load", path=path)
        losses = []
        for _ in range(2):  # the second loss is of what the first step made of the weights
            mine = ours.ask("step")
            losses.append((mine["loss"], theirs.ask("step", rate=mine["rate"])["loss"]))
        differences = [abs(a / b - 1) for a, b in losses]
        print(f"losses, ours and PyTorch's: {losses}", flush=True)
        if differences[0] > 1e-4 or differences[1] > 1e-2:
            raise SystemExit("the two steps are not the same: nothing to compare")
        return timed_in_turn(theirs, ours, pairs) | {"losses": losses}


def memory_row(row: Row, batch: int, pairs: int) -> dict[str, Any]:
    """Peak of each process, one after the other: the ratio of them, and of what the libraries alone take left out."""
    found: dict[str, Any] = {"pairs": pairs, "load": os.getloadavg()[0]}
    peaks, bases = [], []
    for side in (row.a, row.b):
        with side.worker(batch) as worker:
            bases.append(worker.ask("peak")["megabytes"])  # libraries, weights and crops
            for _ in range(3):
                worker.ask("step")
            peaks.append(worker.ask("peak")["megabytes"])
    ratio = peaks[0] / peaks[1]
    above = (peaks[0] - bases[0]) / (peaks[1] - bases[1])
    return found | {
        "ratio": ratio, "low": ratio, "high": ratio, "a_mb": peaks[0], "b_mb": peaks[1],
        "before_mb": bases, "ratio_above_before": above,
    }  # fmt: skip


def sinkhorn_row(row: Row, batch: int, pairs: int) -> dict[str, Any]:
    """The literal form against ours, in this process."""
    import tensorflow as tf

    from swav_tf.method.sinkhorn import sinkhorn

    generator = np.random.default_rng(0)
    z = tf.math.l2_normalize(tf.constant(generator.normal(size=(2, 512, 128)), tf.float32), axis=-1)
    c = tf.math.l2_normalize(tf.constant(generator.normal(size=(128, 3000)), tf.float32), axis=0)
    scores = z @ c
    ours = tf.function(lambda: sinkhorn(scores, epsilon=0.05, iterations=3))
    literal = tf.function(lambda: literal_sinkhorn(scores, 0.05, 3))
    difference = float(np.abs(ours() - literal()).max())
    result: Comparison = compare(
        lambda: ours().numpy(), lambda: literal().numpy(), pairs=max(pairs, 2)
    )  # compare gives second / first
    print(f"largest difference of a code {difference:.1e}, target <= 1e-6")
    found = vars(result) | {"a_ms": result.b_ms, "b_ms": result.a_ms}
    return found | {"difference": difference}


def literal_sinkhorn(scores: Any, epsilon: float, iterations: int) -> Any:
    """Equations 3 to 5 as they stand: the matrix is rewritten at every normalisation."""
    import tensorflow as tf

    q = tf.transpose(tf.exp(scores / epsilon), [0, 2, 1])  # (crops, K, B)
    prototypes, samples = q.shape[1], q.shape[2]
    q /= tf.reduce_sum(q, axis=[1, 2], keepdims=True)
    for _ in range(iterations):
        q /= tf.reduce_sum(q, axis=2, keepdims=True)
        q /= prototypes
        q /= tf.reduce_sum(q, axis=1, keepdims=True)
        q /= samples
    return tf.transpose(q * samples, [0, 2, 1])


SWAV, BARE = Side("swav"), Side("bare", cost=0.95)
SYNCHRONISED = "model.batch_norm.synchronised=true"


def rows(batch: int) -> dict[str, Row]:
    queue = f"method.queue.length={3840 // batch * batch}"
    return {
        "sinkhorn": Row(
            "literal Sinkhorn v the u, v form (2 x 512 x 3000)", ">= 1.5", Side("", cost=0.0),
            Side("", cost=0.0), sinkhorn_row,
        ),
        "bare": Row("SwAV step v bare forward, backward and update", "<= 1.05", SWAV, BARE, time_row),
        "supervised": Row(
            "multi-crop step v supervised 224 step", "<= 3.26", SWAV, Side("supervised", cost=0.31), time_row
        ),
        "torch": Row("PyTorch step (channels_last) v ours, float32", ">= 1.2", Side("torch"), SWAV, torch_row),
        "bf16": Row(
            "float32 step v mixed_bfloat16", ">= 1.4", SWAV,
            Side("swav", ("train.precision=mixed_bfloat16",), 0.8), time_row,
            left_out="this CPU has no instructions for bfloat16" if lacks_bfloat16() else "",
        ),
        "replicas": Row(
            "two replicas, synchronised BN, v one", "<= 1.08",
            Side("swav", ("train.logical_cpus=2", SYNCHRONISED), 1.2), SWAV, time_row,
        ),
        "replicas_own_bn": Row(
            "two replicas, each its own BN, v one", "-", Side("swav", ("train.logical_cpus=2",), 1.05), SWAV,
            time_row,
        ),
        "memory": Row(
            "peak memory of a SwAV step v bare forward, backward and update", "<= 1.1", SWAV, BARE, memory_row
        ),
        "prototypes": Row(
            "step, 30,000 prototypes v 300", "<= 1.03", Side("swav", ("model.prototypes=30000",)),
            Side("swav", ("model.prototypes=300",)), time_row,
        ),
        "queue": Row("step, queue of 3840 v none", "<= 1.02", Side("swav", (queue,)), SWAV, time_row),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="all", help="names with commas, or all")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help=f"results so far, and new ones ({RESULTS})"
    )
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="do rows anew that are done")
    parser.add_argument("--list", action="store_true", help="tell the rows and their minutes")
    arguments = parser.parse_args()
    batch, pairs, path = arguments.batch, arguments.pairs, arguments.json
    known = rows(batch)
    names = list(known) if arguments.rows == "all" else arguments.rows.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if arguments.list:
        for name in names:
            row = known[name]
            print(f"{name:16} {row.minutes(batch, pairs):5.0f} min  {row.title}, target {row.target}")
        print(
            f"batch {batch}, {pairs} pairs: {sum(known[n].minutes(batch, pairs) for n in names):.0f} min in all"
        )
        return

    done: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in names:
        row, key = known[name], {"name": name, "batch": batch, "pairs": pairs}
        before = [found for found in done if key.items() <= found.items()]
        if before and not arguments.again:
            show(before[0], "done before")
            continue
        if row.left_out:
            print(f"{name}: left out, {row.left_out}", flush=True)
            continue
        print(f"{name}: about {row.minutes(batch, pairs):.0f} minutes", flush=True)
        found = key | {"row": row.title, "target": row.target} | row.run(row, batch, pairs)
        done = [old for old in done if old not in before] + [found]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"rows": done}, indent=1))
        os.replace(partial, path)
        show(found)


def show(found: dict[str, Any], remark: str = "") -> None:
    unit = "mb" if "a_mb" in found else "ms"
    wall = f", wall {found['wall_ratio']:.3f}" if "wall_ratio" in found else ""
    above = f", above libraries and weights {found['ratio_above_before']:.3f}" if unit == "mb" else ""
    print(
        f"{found['row']:64} {found['ratio']:6.3f}  [{found['low']:.3f}, {found['high']:.3f}]  target {found['target']}"
        f"  ({found[f'a_{unit}']:.0f} v {found[f'b_{unit}']:.0f} {unit}{wall}{above}, batch {found['batch']}, "
        f"{found['pairs']} pairs, load {found['load']:.1f}) {remark}",
        flush=True,
    )


if __name__ == "__main__":
    main()
