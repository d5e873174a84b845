"""Load on `swav-tf serve`: throughput compared with the bare model, latency, and what SIGTERM loses.

    python -m benchmarks.serve EXPORTED [--json FILE] [--clients 1,8,32] [--seconds 5] [--pairs 5] [-- OPTIONS OF serve]

Each client sends one JPEG of 500x375 pixels after another on its own connection and asks for a NumPy file. The bare
model computes batches of 32 views that are ready in memory, in turn with the service. The clients share the machine
with the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

from benchmarks.common import Rows, argument_parser, in_turn, photos, ratios
from evaluate.backends.onnx_backend import OnnxBackend
from swav_tf.data.decode import decode, evaluation_view

BATCH = 32
HEADERS = {"Content-Type": "image/jpeg", "Accept": "application/x-npy"}


@dataclass
class Load:
    """What the clients saw. A request is lost if its connection ended without an answer."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    lost: int = 0


def client(address: tuple[str, int], files: list[bytes], until: float, load: Load) -> None:
    """Send requests one after another until the time, or until no connection is accepted."""
    connection = HTTPConnection(*address)
    while time.perf_counter() < until:
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return
        started = time.perf_counter()
        try:
            connection.request("POST", "/features", files[len(load.seconds) % len(files)], HEADERS)
            answer = connection.getresponse()
            answer.read()
        except (OSError, HTTPException):
            load.lost += 1
            connection.close()
            continue
        load.failed += answer.status != 200
        load.seconds.append(time.perf_counter() - started)
    connection.close()


def clients(address: tuple[str, int], files: list[bytes], count: int, seconds: float) -> Load:
    load, until = Load(), time.perf_counter() + seconds
    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(client, address, files, until, load)
    return load


def measure(
    exported: Path, rows: Rows, counts: list[int], seconds: float, pairs: int, options: list[str]
) -> None:
    model, files = OnnxBackend(exported), photos(64)
    views = np.stack([evaluation_view(decode(file), model.input_view) for file in files[:BATCH]])
    loads: list[Load] = []

    def bare() -> float:
        """Return the seconds per image."""
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + seconds:
            model.features(views)
            done += BATCH
        return (time.perf_counter() - started) / done

    command = [sys.executable, "-m", "cli.main", "serve", str(exported), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            address = ready["host"], ready["port"]
            for count in counts:
                loads.clear()

                def served(count: int = count) -> float:
                    started = time.perf_counter()
                    loads.append(clients(address, files, count, seconds))
                    return (time.perf_counter() - started) / len(loads[-1].seconds)

                found = ratios(*in_turn(served, bare, pairs))
                latency = [1000 * value for load in loads[1:] for value in load.seconds]
                found |= {
                    "p50_ms": statistics.median(latency),
                    "p99_ms": float(np.percentile(latency, 99)),
                    "requests": len(latency),
                    "failed": sum(load.failed + load.lost for load in loads),
                }
                remark = (
                    f", {1000 / found['first_ms']:.1f} vs. {1000 / found['second_ms']:.1f} images/s, p50 "
                    f"{found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms of {found['requests']}, {found['failed']} "
                    "failed"
                )
                name = f"{exported.parent.name}/{exported.name}, {count} clients"
                rows.add(name, "-", found, remark=remark)
            threading.Timer(seconds / 2, process.send_signal, [signal.SIGTERM]).start()
            load = clients(address, files, max(counts), seconds)
            code = process.wait()
            print(f"SIGTERM under load: {len(load.seconds)} answered, {load.lost} lost, exit code {code}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("options", nargs="*", help="options of serve, after --")
    given = parser.parse_args()
    counts = [int(count) for count in given.clients.split(",")]
    measure(given.exported, Rows(given.json), counts, given.seconds, given.pairs, given.options)
