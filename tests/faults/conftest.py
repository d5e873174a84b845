"""The fixtures of the fault lane, and its table of what was tried."""

import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from tests.faults import harness
from tests.faults.jobs import EXPORT, JOBS

TALLY = "faults"


@pytest.fixture
def tally(request):
    """Count a fault by kind and outcome; the table at the end lists the sums."""
    counts: dict[str, int] = {}
    request.node.user_properties.append((TALLY, counts))

    def tally(kind: str, outcome: str, number: int = 1) -> None:
        key = f"{kind} | {outcome}"
        counts[key] = counts.get(key, 0) + number

    return tally


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", "") == "call":
            for name, counts in report.user_properties:
                totals.update(counts if name == TALLY else {})
    if totals:
        terminalreporter.section("faults")
        terminalreporter.write_line("| kind | outcome | number |\n|---|---|---:|")
        for key, number in sorted(totals.items()):
            terminalreporter.write_line(f"| {key} | {number:,} |")
        kills = sum(number for key, number in totals.items() if key.endswith("| killed"))
        observed = sum(number for key, number in totals.items() if "| observed: " in key)
        terminalreporter.write_line(f"{totals.total() - kills - observed:,} inputs and trials, {kills} kills")


@pytest.fixture
def random(request):
    """Return random numbers; FAULTS_SEED repeats those of an earlier run."""
    seed = os.environ.get("FAULTS_SEED") or str(int.from_bytes(os.urandom(4), "little"))
    print(f"FAULTS_SEED={seed}")  # shown if the test fails
    return Random(f"{seed} {request.node.name}")


@pytest.fixture(scope="session", autouse=True)
def server():
    harness.start_server()


@pytest.fixture(scope="session")
def worker(server):
    worker = harness.Worker()
    yield worker
    worker.close()


@pytest.fixture
def folder(tmp_path):
    """Return an empty folder that is removed at the end."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def inputs(server, tmp_path_factory):
    """Return what commands read, by name: a run, its export, probe and features, images."""
    folder = tmp_path_factory.mktemp("inputs")
    found = {"run": folder / "run", "exported": folder / "exported", "probe": folder / "probe/run"}
    found |= {"features": folder / "digits.npz", "parts": folder / "parts"}
    found |= {
        "images": write_images(folder / "images", 1200),
        "damaged": write_images(folder / "damaged", 120),
    }
    found["image"] = found["images"] / "class 0/00000.png"
    for name in ("class 0/00003.png", "class 1/00004.png", "class 2/00005.png"):
        os.truncate(found["damaged"] / name, 100)
    JOBS["pretrain"].run(folder, found)
    EXPORT.run(folder, found)
    JOBS["probe"].run(folder / "probe", found)
    features = ("features", "digits", "--split", "test", "--model", found["run"], "--output")
    harness.run(*features, found["features"])
    harness.run(*features, found["parts"], "--part", "1/1")
    return found


def write_images(folder: Path, number: int) -> Path:
    """Write noise, 40 x 48 pixels, in folders of three classes."""
    draw = np.random.default_rng(9)
    for image in range(number):
        path = folder / f"class {image % 3}" / f"{image:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return folder
