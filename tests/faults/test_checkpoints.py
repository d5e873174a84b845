"""Damaged checkpoints and altered settings of a run: refused, or the same model.

A run resumes from the newest intact checkpoint and ends with the same bits.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from swav_tf.plumbing.errors import SwavError
from swav_tf.runs.checkpoint import ARRAYS, FACTS, CheckpointError, CheckpointStore
from tests.faults.harness import DAMAGES, damage, damages, examples, randoms, refused, rounds, run
from tests.faults.jobs import FEATURES, JOBS, PRETRAIN, TRAINING
from tests.faults.test_kills import Undisturbed
from tests.faults.test_recipes import altered

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(2400)]
RECIPE, MODEL = "config.yaml", "model.json"
JOB = replace(TRAINING, settings=(*PRETRAIN, "checkpoint.keep_last=5"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a folder with a small checkpoint."""
    draw = np.random.default_rng(5)
    arrays = {f"backbone/{n}/kernel": draw.normal(size=(3, 3, 8, 8)).astype(np.float32) for n in range(4)}
    arrays["optimizer/iterations"] = np.array([44], np.int64)
    position = {"step": 44, "sums": {"loss": 12.25, "gradient_norm": 0.125}, "usage": [3, 4, 0, 9]}
    images = {"images": 1437, "names_sha256": "0" * 64}
    store = CheckpointStore(tmp_path_factory.mktemp("stored"), kind="pretrain")
    store.write(44, arrays, {"position": position, "images": images, "replicas": 1})
    return store


@given(name=st.sampled_from((ARRAYS, FACTS)), how=damages, random=randoms)
@examples(600)
def test_damaged_checkpoint_is_not_loaded(stored, tmp_path, tally, name, how, random):
    right = stored.read(44)
    copy = shutil.copytree(stored.folder, tmp_path / "copy", dirs_exist_ok=True)
    (copy / right.path.name / name).write_bytes(damage((right.path / name).read_bytes(), how, random))
    try:
        got = CheckpointStore(copy, kind="pretrain").read(44)
    except CheckpointError:
        tally("checkpoint, damaged", "refused")
        return
    assert got.facts == right.facts
    assert all(np.array_equal(got.arrays[key], value) for key, value in right.arrays.items())
    tally("checkpoint, damaged", "the same state")


@pytest.fixture(scope="module")
def interrupted(inputs, tmp_path_factory):
    """Return the undisturbed result of a run, and a folder with an interrupted one."""
    folder = tmp_path_factory.mktemp("interrupted")
    result = Undisturbed(JOB, folder / "undisturbed", inputs).result
    command = JOB.start(folder, inputs)
    while len(list(folder.glob("run/checkpoints/step-*"))) < 4:
        assert not command.has_ended()
    command.kill()
    command.wait()
    return result, folder


@pytest.mark.parametrize("number", rounds(12))
def test_run_with_damaged_checkpoints(interrupted, inputs, folder, random, tally, number):
    result, source = interrupted
    copy = shutil.copytree(source, folder / "copy")
    checkpoints = sorted(copy.glob("run/checkpoints/step-*"))
    bad = len(checkpoints) if number % 4 == 3 else random.randrange(1, len(checkpoints))
    for checkpoint in checkpoints[-bad:]:
        spoil(checkpoint / random.choice((ARRAYS, FACTS)), random)
    refused(*FEATURES.words(folder, inputs | {"run": copy / "run"}))  # never those of an older checkpoint
    if bad == len(checkpoints):
        refused(*JOB.words(copy, inputs))
        tally("checkpoints of a run, all damaged", "refused")
    else:
        assert "is damaged" in JOB.run(copy, inputs).err
        assert JOB.result(copy) == result
        tally("checkpoints of a run, newest damaged", "reported, resumed, the same bits")


def spoil(path: Path, random) -> None:
    """Change the content, not only the layout of JSON."""
    data = path.read_bytes()
    start = random.randrange(len(data) // 4, len(data) // 2)
    path.write_bytes(data[:start] + random.choice((b"", bytes([data[start] ^ 0x80]) + data[start + 1 :])))


@pytest.mark.parametrize("number", rounds(8))
def test_resume_with_altered_settings(interrupted, inputs, folder, random, tally, number):
    result, source = interrupted
    copy = shutil.copytree(source, folder / "copy")
    path = copy / "run" / RECIPE
    config = path.read_bytes()
    path.write_bytes(altered(read(config), random))
    ended = JOB.start(copy, inputs).wait()
    ended.check(0, 1, 2)
    path.write_bytes(config)  # the command keeps an altered setting that may change
    assert ended.code or JOB.result(copy) == result
    tally("config.yaml altered, run resumed", "refused" if ended.code else "the same bits")


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory):
    """Return runs of every kind."""
    folder = tmp_path_factory.mktemp("runs")
    JOBS["probe --cached"].run(folder, inputs)
    run("weights", "import", inputs["run"], "--to", folder / "imported")
    return {
        "trained": inputs["run"],
        "imported": folder / "imported",
        "probe": inputs["probe"],
        "cached": folder / "run",
    }


PLACES = [(name, RECIPE) for name in ("trained", "imported", "probe", "cached")] + [
    ("probe", MODEL),
    ("cached", MODEL),
]


@given(place=st.sampled_from(PLACES), random=randoms, readable=st.sampled_from((True, True, False)))
@examples(250)
def test_altered_settings(runs, folder, worker, tally, place, random, readable):
    """Alter a setting, or damage the bytes."""
    name, file = place
    copy = shutil.copytree(runs[name], folder / name, dirs_exist_ok=True)
    data = (copy / file).read_bytes()
    changed = altered(read(data), random) if readable else damage(data, random.choice(DAMAGES), random)
    (copy / file).write_bytes(changed)
    outputs = classifier_outputs if name in ("probe", "cached") else backend_outputs
    tally(f"{file}, altered", worker(loaded, outputs, runs[name], copy))


def read(data: bytes):
    # JSON is YAML, except for 1e-05, which is text in YAML.
    return json.loads(data) if data.startswith(b"{") else YAML(typ="safe").load(data)


def loaded(outputs, original: Path, copy: Path) -> str:
    try:
        got = outputs(copy)
    except SwavError:
        return "refused"
    assert got == right(outputs, original)
    return "the same outputs"


@cache
def right(outputs, original: Path):
    return outputs(original)


def some_images(side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (4, side, side, 3), dtype=np.uint8)


def backend_outputs(run: Path):
    from evaluate.backends.keras_backend import KerasBackend

    backend = KerasBackend(run)
    outputs = backend.run(some_images(backend.input_view.crop))
    facts = {name: fact for name, fact in backend.facts.as_dict().items() if name != "path"}
    return {name: array.tolist() for name, array in outputs.items()}, backend.input_view, facts


def classifier_outputs(run: Path):
    from swav_tf.training.classifier import load_classifier

    model, recipe, facts = load_classifier(run)
    view = recipe.data.evaluation
    logits = model.classifier(model.features(some_images(view.crop))).numpy().tolist()
    return logits, view, facts.class_names, facts.how, recipe.name
