"""Damaged checkpoints and altered settings of a run: refused, or the same model; a run resumes from the newest intact
checkpoint and ends with the same bits.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from swav_tf.plumbing.errors import SwavError
from swav_tf.runs.checkpoint import ARRAYS, FACTS, CheckpointError, CheckpointStore
from tests.faults import jobs
from tests.faults.conftest import Tally
from tests.faults.harness import (
    DAMAGES,
    Command,
    Worker,
    damage,
    damages,
    examples,
    randoms,
    refused,
    rounds,
    run,
)  # fmt: skip
from tests.faults.test_kills import Undisturbed
from tests.faults.test_recipes import altered

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]
RECIPE, MODEL = "config.yaml", "model.json"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
    """Return a folder with a small checkpoint."""
    draw = np.random.default_rng(5)
    arrays = {f"backbone/{n}/kernel": draw.normal(size=(3, 3, 8, 8)).astype(np.float32) for n in range(4)}
    arrays["optimizer/iterations"] = np.array([44], np.int64)
    facts = {
        "position": {"step": 44, "sums": {"loss": 12.25, "gradient_norm": 0.125}, "usage": [3, 4, 0, 9]},
        "recipe": {"name": "x", "train": {"epochs": 2, "batch_size": 64}},
        "images": {"images": 1437, "names_sha256": "0" * 64},
        "replicas": 1,
    }
    store = CheckpointStore(tmp_path_factory.mktemp("stored"), kind="pretrain")
    store.write(44, arrays, facts)
    return store


@given(name=st.sampled_from((ARRAYS, FACTS)), how=damages, random=randoms)
@examples(600)
def test_damaged_checkpoint_is_not_loaded(
    stored: CheckpointStore, tmp_path: Path, tally: Tally, name: str, how: str, random: Random
) -> None:
    right = stored.read(44)
    copy = shutil.copytree(stored.folder, tmp_path / "copy", dirs_exist_ok=True)
    data = damage((right.path / name).read_bytes(), how, random)
    (copy / right.path.name / name).write_bytes(data)
    try:
        got = CheckpointStore(copy, kind="pretrain").read(44)
    except CheckpointError:
        tally("checkpoint, damaged", "refused")
        return
    assert got.facts == right.facts
    assert all(np.array_equal(got.arrays[key], value) for key, value in right.arrays.items())
    tally("checkpoint, damaged", "the same state")


@pytest.fixture(scope="module")
def interrupted(
    server: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[jobs.Job, dict[str, Any], Path]:
    """Return a job, its undisturbed result, and a folder with an interrupted run of it."""
    folder = tmp_path_factory.mktemp("interrupted")
    job = jobs.pretrain(settings=("checkpoint.keep_last=5",))
    result = Undisturbed(job, folder / "undisturbed").result
    command = Command(*job.words(folder))
    while len(CheckpointStore(folder / "run/checkpoints", kind="pretrain").steps()) < 4:
        assert not command.has_ended()
    command.kill()
    command.wait()
    return job, result, folder


@pytest.mark.parametrize("number", rounds(12))
def test_run_with_damaged_checkpoints(
    interrupted: tuple[jobs.Job, dict[str, Any], Path],
    folder: Path,
    random: Random,
    tally: Tally,
    number: int,
) -> None:
    job, result, source = interrupted
    copy = shutil.copytree(source, folder / "copy")
    store = CheckpointStore(copy / "run/checkpoints", kind="pretrain")
    steps = store.steps()
    bad = len(steps) if number % 4 == 3 else random.randrange(1, len(steps))
    for step in steps[-bad:]:
        spoil(store.path(step) / random.choice((ARRAYS, FACTS)), random)
    refused(*jobs.features(copy / "run", ".npz").words(folder))  # never those of an older checkpoint
    if bad == len(steps):
        run(*job.words(copy), code=1)
        tally("checkpoints of a run, all damaged", "refused")
    else:
        ended = run(*job.words(copy))
        assert "is damaged" in ended.err
        assert {**job.result(copy), "complaints": []} == result
        tally("checkpoints of a run, newest damaged", "reported, resumed, the same bits")


def spoil(path: Path, random: Random) -> None:
    """Change the content, not only the layout of JSON."""
    data = path.read_bytes()
    start = random.randrange(len(data) // 4, len(data) // 2)
    path.write_bytes(data[:start] + random.choice((b"", bytes([data[start] ^ 0x80]) + data[start + 1 :])))


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return runs of every kind."""
    folder = tmp_path_factory.mktemp("runs")
    for name, cached in (("probe", False), ("cached", True)):
        run(*jobs.classifier("probe", trained, cached=cached).words(folder / name))
    run("weights", "import", trained, "--to", folder / "imported")
    return {"trained": trained, "imported": folder / "imported", "probe": folder / "probe/run",
            "cached": folder / "cached/run"}  # fmt: skip


PLACES = (
    ("trained", RECIPE), ("imported", RECIPE), ("probe", RECIPE), ("probe", MODEL), ("cached", RECIPE), ("cached", MODEL),
)  # fmt: skip


@given(place=st.sampled_from(PLACES), random=randoms, readable=st.sampled_from((True, True, False)))
@examples(250)
def test_altered_settings(
    runs: dict[str, Path], folder: Path, worker: Worker, tally: Tally, place: tuple[str, str], random: Random,
    readable: bool,
) -> None:  # fmt: skip
    """Alter a setting, or damage the bytes."""
    name, file = place
    copy = shutil.copytree(runs[name], folder / name, dirs_exist_ok=True)
    data = alter((runs[name] / file).read_bytes(), random) if readable else None
    (copy / file).write_bytes(
        data or damage((runs[name] / file).read_bytes(), random.choice(DAMAGES), random)
    )
    tally(f"{file}, altered", worker(loaded, runs[name], copy, name in ("probe", "cached")))
    shutil.copy(runs[name] / file, copy / file)


def alter(data: bytes, random: Random) -> bytes:
    # JSON is YAML, except for 1e-05, which is text in YAML.
    return altered(json.loads(data) if data.startswith(b"{") else YAML(typ="safe").load(data), random)


def loaded(original: Path, copy: Path, is_classifier: bool) -> str:
    outputs = classifier_outputs if is_classifier else backend_outputs
    try:
        got = outputs(copy)
    except SwavError:
        return "refused"
    assert got == right(original, is_classifier)
    return "the same outputs"


@cache
def right(original: Path, is_classifier: bool) -> dict[str, Any]:
    return (classifier_outputs if is_classifier else backend_outputs)(original)


def some_images(side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (4, side, side, 3), dtype=np.uint8)


def backend_outputs(run: Path) -> dict[str, Any]:
    from evaluate.backends.keras_backend import KerasBackend

    backend = KerasBackend(run)
    outputs = {
        name: array.tolist() for name, array in backend.run(some_images(backend.input_view.crop)).items()
    }
    facts = {name: fact for name, fact in backend.facts.as_dict().items() if name != "path"}
    return {**outputs, "view": backend.input_view, "facts": facts}


def classifier_outputs(run: Path) -> dict[str, Any]:
    from swav_tf.training.classifier_folder import load_classifier

    model, recipe, facts = load_classifier(run)
    view = recipe.data.evaluation
    logits = model.classifier(model.features(some_images(view.crop))).numpy().tolist()
    return {
        "logits": logits,
        "view": view,
        "classes": facts.class_names,
        "how": facts.how,
        "name": recipe.name,
    }


@pytest.mark.parametrize("number", rounds(8))
def test_resume_with_altered_settings(
    interrupted: tuple[jobs.Job, dict[str, Any], Path],
    folder: Path,
    random: Random,
    tally: Tally,
    number: int,
) -> None:
    job, result, source = interrupted
    copy = shutil.copytree(source, folder / "copy")
    path = copy / "run" / RECIPE
    path.write_bytes(alter(path.read_bytes(), random))
    ended = Command(*job.words(copy)).wait()
    ended.check()
    if ended.code:
        tally("config.yaml altered, run resumed", "refused")
    else:
        assert job.result(copy) == result
        tally("config.yaml altered, run resumed", "the same bits")
