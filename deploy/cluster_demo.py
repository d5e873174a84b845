"""Train on the digits with two workers, kill one, and start both again: `make cluster-demo`.

Trains twice, undisturbed and disturbed, and compares. Takes some minutes on two CPU cores; uses only loopback.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swav_tf.runs.checkpoint import Checkpoint, CheckpointStore
from swav_tf.training.rendezvous import free_port

LOST = 75  # exit code of a worker that has lost another one
SETTINGS = (
    "checkpoint.every_minutes=0.05",
    "monitor.log_every_steps=1",
    "monitor.tensorboard=false",
    "data.threads=1",
    "method.prototypes_frozen_steps=22",
    "train.deterministic=true",
    "train.worker_timeout_seconds=15",
)
HOW = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
console = Console(highlight=False, soft_wrap=True)


class Worker:
    """One process, whose output is printed as it comes."""

    def __init__(self, rank: int, master: str, run: Path, epochs: int) -> None:
        self.rank = rank
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cli.main", "pretrain", "-c", "demo", "--run-dir", str(run)),
                *("--nodes", "2", "--node-rank", str(rank), "--master", master),
                *(word for setting in (*SETTINGS, f"train.epochs={epochs}") for word in ("-o", setting)),
            ],
            cwd=Path(__file__).parents[1],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.strip():
                console.print(f"  [dim]worker {self.rank} │[/]", escape(line.rstrip()))

    def wait(self) -> int:
        """Return the exit code."""
        code = self.process.wait(timeout=600)
        self._reader.join(timeout=10)
        return code


def start(run: Path, epochs: int) -> list[Worker]:
    """Start both workers, which meet at a free port."""
    master = f"127.0.0.1:{free_port()}"
    return [Worker(rank, master, run, epochs) for rank in range(2)]


def finish(workers: list[Worker]) -> None:
    """Wait until all end without an error."""
    for worker in workers:
        if code := worker.wait():
            raise SystemExit(f"worker {worker.rank} ended with {code}; see its output above")


def steps_done(run: Path) -> int:
    """Return the last step in metrics.jsonl."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def disturb(workers: list[Worker], run: Path, half: int, how: str) -> None:
    """Kill or stop worker 1 when half is done and a checkpoint exists, and check that worker 0 notices."""
    store = CheckpointStore(run / "checkpoints", kind="pretrain")
    while steps_done(run) < half or not store.steps():
        time.sleep(0.05)
        if any(worker.process.poll() is not None for worker in workers):
            raise SystemExit("a worker ended too early; see its output above")
    survivor, victim = workers
    victim.process.send_signal(HOW[how])
    began = time.monotonic()
    name = HOW[how].name
    console.print(
        f"  [bold red]{name} to worker 1[/] (process {victim.process.pid}) after step {steps_done(run)}"
    )
    code = survivor.wait()
    victim.process.kill()
    victim.wait()
    console.print(
        f"  worker 0 noticed and ended with code {code}, {time.monotonic() - began:.1f} s after the signal"
    )
    if code != LOST:
        raise SystemExit(f"worker 0 should have ended with {LOST}")


def figures(run: Path) -> tuple[dict[str, Any], Checkpoint]:
    """Return the summary and the last checkpoint of a run."""
    checkpoint, _ = CheckpointStore(run / "checkpoints", kind="pretrain").newest()
    assert checkpoint is not None
    return json.loads((run / "summary.json").read_text()), checkpoint


def compare(undisturbed: Path, disturbed: Path) -> bool:
    """Print both runs' figures; return whether the disturbed one resumed and ended with the same weights.

    The sum of two workers' numbers does not depend on their order, so the weights must be equal bit for bit.
    """
    (one, first), (other, second) = figures(undisturbed), figures(disturbed)
    table = Table(title="Trained by two workers")
    for column in ("", "undisturbed", "killed and restarted"):
        table.add_column(column, justify="left" if not column else "right")
    for title, key, form in (
        ("steps", "steps", "d"),
        ("resumed from step", "resumed_from_step", "s"),
        ("loss of the last epoch", "loss_last", ".6f"),
        ("20-NN accuracy", "knn_top1", ".4f"),
        ("prototypes in use", "prototypes_used", "d"),
    ):
        values = (one[key], other[key])
        table.add_row(
            title, *("-" if v is None else format(str(v) if form == "s" else v, form) for v in values)
        )
    console.print(table)
    resumed = bool(other["resumed_from_step"])
    if not resumed:
        console.print("The killed run started over: it should have resumed from a checkpoint.")
    if first.arrays.keys() != second.arrays.keys():
        console.print(f"Only one of them contains: {', '.join(first.arrays.keys() ^ second.arrays.keys())}.")
        return False
    different = [name for name, array in first.arrays.items() if not _same_bits(array, second.arrays[name])]
    console.print(
        f"{len(different)} of {len(first.arrays)} arrays of the last checkpoints differ: {', '.join(different[:3])}."
        if different
        else "Every weight is equal, bit for bit."
    )
    return resumed and not different


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each run (default: 4)")
    parser.add_argument(
        "--how", choices=sorted(HOW), default="kill", help="what happens to worker 1: kill -9, or SIGSTOP"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep both runs there")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="swav-tf-cluster-"))
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    began = time.monotonic()
    try:
        console.print("[bold]1. Two workers train on the digits, undisturbed[/]")
        finish(start(undisturbed, options.epochs))
        half = figures(undisturbed)[0]["steps"] // 2
        console.print(f"\n[bold]2. The same again; worker 1 gets {HOW[options.how].name} half-way[/]")
        disturb(start(disturbed, options.epochs), disturbed, half, options.how)
        console.print("\n[bold]3. The same command again on both: the run resumes[/]")
        finish(start(disturbed, options.epochs))
        console.print()
        same = compare(undisturbed, disturbed)
        console.print(f"{time.monotonic() - began:.0f} s in total.")
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if not same:
        raise SystemExit("The killed run should have resumed and ended with the same weights.")


if __name__ == "__main__":
    main()
