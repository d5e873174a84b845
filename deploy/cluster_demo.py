"""Two worker processes train on the digits, one of them is killed, both are started again: `make cluster-demo`.

It trains twice, undisturbed and disturbed, and compares. Some minutes on two CPU cores, nothing but loopback.
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

LOST = 75  # what a worker ends with that has lost another one
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
    """One process, whose lines are shown as they come."""

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
        """The exit code."""
        code = self.process.wait(timeout=600)
        self._reader.join(timeout=10)
        return code


def start(run: Path, epochs: int) -> list[Worker]:
    """Both workers, which meet at a free port."""
    master = f"127.0.0.1:{free_port()}"
    return [Worker(rank, master, run, epochs) for rank in range(2)]


def finish(workers: list[Worker]) -> None:
    """Waits for a good end of all."""
    for worker in workers:
        if code := worker.wait():
            raise SystemExit(f"worker {worker.rank} ended with {code}; its lines above say why")


def steps_done(run: Path) -> int:
    """The last step in metrics.jsonl."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def disturb(workers: list[Worker], run: Path, half: int, how: str) -> None:
    """Kills or stops worker 1 when half is done and a checkpoint is there, and shows what worker 0 makes of it."""
    store = CheckpointStore(run / "checkpoints", kind="pretrain")
    while steps_done(run) < half or not store.steps():
        time.sleep(0.05)
        if any(worker.process.poll() is not None for worker in workers):
            raise SystemExit("a worker ended too early; its lines above say why")
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
    """The summary and the last checkpoint of a run."""
    checkpoint, _ = CheckpointStore(run / "checkpoints", kind="pretrain").newest()
    assert checkpoint is not None
    return json.loads((run / "summary.json").read_text()), checkpoint


def compare(undisturbed: Path, disturbed: Path) -> bool:
    """Prints both runs' figures; whether the disturbed one went on, and ended with the same weights.

    The sum of two workers' numbers does not depend on their order: the weights must be the same bits.
    """
    (one, first), (other, second) = figures(undisturbed), figures(disturbed)
    table = Table(title="Trained by two workers")
    for column in ("", "undisturbed", "killed and started again"):
        table.add_column(column, justify="left" if not column else "right")
    for title, key, form in (
        ("steps", "steps", "d"),
        ("went on from step", "resumed_from_step", "s"),
        ("loss of the last epoch", "loss_last", ".6f"),
        ("20-NN accuracy", "knn_top1", ".4f"),
        ("prototypes in use", "prototypes_used", "d"),
    ):
        values = (one[key], other[key])
        table.add_row(
            title, *("-" if v is None else format(str(v) if form == "s" else v, form) for v in values)
        )
    console.print(table)
    went_on = bool(other["resumed_from_step"])
    if not went_on:
        console.print("The killed run began anew: it should have gone on from a checkpoint.")
    if first.arrays.keys() != second.arrays.keys():
        console.print(f"Only one of them has: {', '.join(first.arrays.keys() ^ second.arrays.keys())}.")
        return False
    different = [name for name, array in first.arrays.items() if not _same_bits(array, second.arrays[name])]
    console.print(
        f"{len(different)} of {len(first.arrays)} arrays of the last checkpoints differ: {', '.join(different[:3])}."
        if different
        else "Every weight is the same, bit for bit."
    )
    return went_on and not different


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def main() -> None:
    """Runs the demo."""
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
        console.print("\n[bold]3. The same command again on both: the run goes on[/]")
        finish(start(disturbed, options.epochs))
        console.print()
        same = compare(undisturbed, disturbed)
        console.print(f"{time.monotonic() - began:.0f} s in all.")
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if not same:
        raise SystemExit("The killed run should have gone on, and ended with the same weights.")


if __name__ == "__main__":
    main()
