"""The fixtures of the fault lane, and its table of what was tried."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from tests.faults import harness, jobs

TALLY = "faults"
Tally = Callable[..., None]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Count a fault by kind and outcome; the table at the end lists the sums."""
    counts: dict[str, int] = {}
    request.node.user_properties.append((TALLY, counts))

    def tally(kind: str, outcome: str, number: int = 1) -> None:
        key = f"{kind} | {outcome}"
        counts[key] = counts.get(key, 0) + number

    return tally


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, counts in report.user_properties:
                    for key, number in counts.items() if name == TALLY else ():
                        totals[key] = totals.get(key, 0) + number
    if totals:
        terminalreporter.section("faults")
        terminalreporter.write_line("| kind | outcome | number |\n|---|---|---:|")
        for key in sorted(totals):
            terminalreporter.write_line(f"| {key} | {totals[key]:,} |")
        kills = sum(number for key, number in totals.items() if key.endswith("| killed"))
        observed = sum(number for key, number in totals.items() if "| observed: " in key)
        terminalreporter.write_line(
            f"{sum(totals.values()) - kills - observed:,} inputs and trials, {kills} kills"
        )


@pytest.fixture
def random(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Random:
    """Return random numbers; FAULTS_SEED repeats those of an earlier run."""
    seed = os.environ.get("FAULTS_SEED") or str(int.from_bytes(os.urandom(4), "little"))
    print(f"FAULTS_SEED={seed}")  # shown if the test fails
    return Random(f"{seed} {request.node.name}")


@pytest.fixture(scope="session", autouse=True)
def server(request: pytest.FixtureRequest) -> None:
    harness.start_server()


@pytest.fixture(scope="session")
def worker(server: None) -> Iterator[harness.Worker]:
    worker = harness.Worker()
    yield worker
    worker.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder that is removed at the end."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def trained(server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pretraining run of 44 steps on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    harness.run(*jobs.pretrain().words(folder))
    return folder / "run"


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its export."""
    folder = tmp_path_factory.mktemp("exported")
    harness.run(*jobs.export(trained, "fp32").words(folder))
    return folder / "exported"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders of 1,200 images of noise."""
    return write_images(tmp_path_factory.mktemp("images"), 1200)


@pytest.fixture(scope="session")
def inputs(
    trained: Path, exported: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> jobs.Inputs:
    """Return everything that commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    harness.run(*jobs.classifier("probe", trained).words(folder))
    features, measured = folder / "digits.npz", folder / "measured"
    harness.run("features", "digits", "--split", "test", "--model", trained, "--output", features)
    measured.mkdir()
    harness.run(*jobs.benchmark(exported).words(measured))
    damaged = write_images(folder / "damaged", 120)
    for name in ("class 0/00003.png", "class 1/00004.png", "class 2/00005.png"):
        os.truncate(damaged / name, 100)
    return jobs.Inputs(
        trained, exported, images, folder / "run", features, measured / "figures.json", damaged
    )


def write_images(folder: Path, number: int) -> Path:
    """Write noise in color, 40 x 48 pixels, in folders of three classes."""
    draw = np.random.default_rng(9)
    for image in range(number):
        path = folder / f"class {image % 3}" / f"{image:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return folder
