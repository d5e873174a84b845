"""Train on the digits with two workers, kill one, and start both again: `make cluster-demo`.

Trains twice, undisturbed and disturbed, and compares. Takes some minutes on two CPU cores; uses only loopback.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

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
FIGURES = {  # keys of summary.json
    "steps": "steps",
    "resumed from step": "resumed_from_step",
    "loss of the last epoch": "loss_last",
    "20-NN accuracy": "knn_top1",
    "prototypes in use": "prototypes_used",
}


def start(run: Path, epochs: int) -> list[subprocess.Popen[bytes]]:
    """Start both workers, which meet at a free port."""
    settings = [word for setting in (*SETTINGS, f"train.epochs={epochs}") for word in ("-o", setting)]
    command = [
        *(sys.executable, "-m", "cli.main", "pretrain", "-c", "demo", "--run-dir", str(run), *settings),
        *("--nodes", "2", "--master", f"127.0.0.1:{free_port()}", "--node-rank"),
    ]
    return [subprocess.Popen([*command, rank], cwd=Path(__file__).parents[1]) for rank in ("0", "1")]


def finish(workers: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all end without an error."""
    for rank, worker in enumerate(workers):
        if code := worker.wait(timeout=600):
            raise SystemExit(f"worker {rank} ended with {code}; see its output above")


def steps_done(run: Path) -> int:
    """Return the last step in metrics.jsonl."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def disturb(workers: list[subprocess.Popen[bytes]], run: Path, half: int, how: str) -> None:
    """Kill or stop worker 1 when half is done and a checkpoint exists, and check that worker 0 notices."""
    store = CheckpointStore(run / "checkpoints", kind="pretrain")
    while steps_done(run) < half or not store.steps():
        time.sleep(0.05)
        if any(worker.poll() is not None for worker in workers):
            raise SystemExit("a worker ended too early; see its output above")
    survivor, victim = workers
    victim.send_signal(HOW[how])
    began = time.monotonic()
    print(f"{HOW[how].name} to worker 1 (process {victim.pid}) after step {steps_done(run)}", flush=True)
    code = survivor.wait(timeout=600)
    victim.kill()
    victim.wait()
    print(f"worker 0 noticed and ended with code {code}, {time.monotonic() - began:.1f} s after the signal")
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
    print(f"{'trained by two workers':24} {'undisturbed':>20} {'killed and restarted':>20}")
    for title, key in FIGURES.items():
        values = ("-" if summary[key] is None else summary[key] for summary in (one, other))
        print(f"{title:24} {' '.join(f'{value!s:>20}' for value in values)}")
    resumed = bool(other["resumed_from_step"])
    if not resumed:
        print("The killed run started over: it should have resumed from a checkpoint.")
    different = sorted(first.arrays.keys() ^ second.arrays.keys())
    for name in first.arrays.keys() & second.arrays.keys():
        if not _same_bits(first.arrays[name], second.arrays[name]):
            different.append(name)
    print(
        f"{len(different)} of {len(first.arrays)} arrays of the last checkpoints differ: {', '.join(different[:3])}."
        if different
        else "Every weight is equal, bit for bit."
    )
    return resumed and not different


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def run_both(folder: Path, epochs: int, how: str) -> bool:
    """Train in this folder, undisturbed and disturbed; return whether both ended with the same weights."""
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    print("1. Two workers train on the digits, undisturbed", flush=True)
    finish(start(undisturbed, epochs))
    print(f"\n2. The same again; worker 1 gets {HOW[how].name} half-way", flush=True)
    disturb(start(disturbed, epochs), disturbed, figures(undisturbed)[0]["steps"] // 2, how)
    print("\n3. The same command again on both: the run resumes", flush=True)
    finish(start(disturbed, epochs))
    print()
    return compare(undisturbed, disturbed)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each run (default: 4)")
    parser.add_argument(
        "--how", choices=sorted(HOW), default="kill", help="what happens to worker 1: kill -9, or SIGSTOP"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swav-tf-cluster-") as folder:
        if not run_both(Path(folder), options.epochs, options.how):
            raise SystemExit("The killed run should have resumed and ended with the same weights.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the workers get it too
        sys.exit("Interrupted.")
