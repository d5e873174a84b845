"""Load on `swav-tf serve`: throughput compared with the bare model, latency, and what SIGTERM loses.

    python -m benchmarks.serve EXPORTED [--json FILE] [--clients 1,8,32] [--seconds 5] [--pairs 5] [-- OPTIONS OF serve]

Each client sends one JPEG of 500x375 pixels after another on its own connection and asks for a NumPy file. The bare
model computes batches of 32 views that are ready in memory, in turn with the service. The clients share the machine
with the service: their CPU time is stated as a share of all cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common import Rows, argument_parser, in_turn, photos, ratios
from evaluate.backends.onnx_backend import OnnxBackend
from swav_tf.data.decode import decode, evaluation_view
from swav_tf.plumbing.system import available_cores

BATCH = 32


@dataclass
class Load:
    """What the clients saw. A request is lost if it was sent completely and its connection ended without an answer."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    lost: int = 0


async def client(address: tuple[str, int], requests: list[bytes], load: Load, until: float) -> None:
    """Send requests one after another until the time, or until no connection is accepted."""
    writer = None
    while time.perf_counter() < until:
        if writer is None:
            try:
                reader, writer = await asyncio.open_connection(*address)
            except OSError:
                return
        started = time.perf_counter()
        request = requests[len(load.seconds) % len(requests)]
        try:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            fields = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in fields if line.startswith(b"content-length:"))
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            load.lost += 1
            writer = None
            continue
        load.failed += b" 200 " not in fields[0]
        load.seconds.append(time.perf_counter() - started)
        if b"connection: close" in fields:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


async def clients(
    address: tuple[str, int], requests: list[bytes], count: int, seconds: float, then: object = None
) -> Load:
    """Run clients; with `then`, a process, it gets SIGTERM in the middle."""
    load, until = Load(), time.perf_counter() + seconds
    tasks = [asyncio.create_task(client(address, requests, load, until)) for _ in range(count)]
    if isinstance(then, subprocess.Popen):
        await asyncio.sleep(seconds / 2)
        then.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    return load


def as_requests(files: list[bytes]) -> list[bytes]:
    return [
        b"POST /features HTTP/1.1\r\nHost: bench\r\nContent-Type: image/jpeg\r\nAccept: application/x-npy\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(file), file)
        for file in files
    ]


def measure(
    exported: Path, rows: Rows, counts: list[int], seconds: float, pairs: int, options: list[str]
) -> None:
    model, files = OnnxBackend(exported), photos(64)
    views = np.stack([evaluation_view(decode(file), model.input_view) for file in files[:BATCH]])
    requests = as_requests(files)
    loads: list[Load] = []
    shares: list[float] = []

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
                shares.clear()

                def served(count: int = count) -> float:
                    busy, started = time.process_time(), time.perf_counter()
                    load = asyncio.run(clients(address, requests, count, seconds))
                    taken = time.perf_counter() - started
                    shares.append((time.process_time() - busy) / taken / available_cores())
                    loads.append(load)
                    return taken / len(load.seconds)

                found = ratios(*in_turn(served, bare, pairs))
                latency = [1000 * value for load in loads[1:] for value in load.seconds]
                found |= {
                    "p50_ms": statistics.median(latency),
                    "p99_ms": float(np.percentile(latency, 99)),
                    "requests": len(latency),
                    "failed": sum(load.failed + load.lost for load in loads),
                    "client_share": statistics.median(shares),
                }
                remark = (
                    f", {1000 / found['first_ms']:.1f} v {1000 / found['second_ms']:.1f} images/s, p50 "
                    f"{found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms of {found['requests']}, {found['failed']} "
                    f"failed, clients {100 * found['client_share']:.0f} % of the cores"
                )
                name = f"{exported.parent.name}/{exported.name}, {count} clients"
                rows.add(name, "-", found, remark=remark)
            load = asyncio.run(clients(address, requests, max(counts), seconds, process))
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
