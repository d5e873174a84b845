"""Workers that are not alike do not train together. The processes are real, on loopback."""

import cv2
import numpy as np
import pytest

from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import save_recipe
from swav_tf.training.cluster import differences
from tests.classifiers import tiny_classifier_recipe
from tests.ports import reserve_port
from tests.swav_models import tiny_recipe
from tests.training.runs import CLASSIFIER, PRETRAIN, start


def images(folder, count):
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index:03}.png"), pixels)
    return str(folder)


def ends(*processes):
    """What each says; all must end by themselves, with exit code 2."""
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=200)[1])
            assert process.returncode == 2, said[-1][-3000:]
    finally:
        for process in processes:
            process.kill()
    return said


# Bug caught: workers whose images or settings differ, which train together to the end with exit code 0.
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("count", "seed", "line"),
    [
        (69, 0, "worker 1 has images.images 69, worker 0 has 70"),
        (70, 99, "worker 1 has train.seed 99, worker 0 has 0"),
    ],
    ids=["images", "seed"],
)
def test_pretraining_with_other_images_or_another_seed_is_refused_by_all(tmp_path, count, seed, line):
    master = f"127.0.0.1:{reserve_port()}"
    processes = []
    for rank, (number, own) in enumerate([(70, 0), (count, seed)]):
        recipe = tiny_recipe(train__seed=own)
        # Where the images lie may differ from machine to machine, and does.
        data = {"kind": "images", "path": images(tmp_path / f"images{rank}", number)}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
        save_recipe(recipe, tmp_path / f"{rank}.yaml")
        processes.append(start(PRETRAIN, tmp_path / f"{rank}.yaml", tmp_path / "run", 2, rank, master))
    for said in ends(*processes):
        assert line in said
        others = {line for line in said.splitlines() if line.startswith("  worker 1 has")}
        assert len(others) == (2 if count != 70 else 1), others  # images: their number and their names
    assert not (tmp_path / "run").exists()


# Bug caught: the same in a probe.
@pytest.mark.timeout(500)
def test_a_probe_with_another_seed_is_refused_by_all(tmp_path, pretrained):
    master = f"127.0.0.1:{reserve_port()}"
    processes = []
    for rank, seed in enumerate([0, 99]):
        save_recipe(tiny_classifier_recipe(ProbeRecipe, train__seed=seed), tmp_path / f"{rank}.yaml")
        arguments = (tmp_path / f"{rank}.yaml", pretrained, tmp_path / "run", 2, rank, master)
        processes.append(start(CLASSIFIER, *arguments))
    for said in ends(*processes):
        assert "worker 1 has train.seed 99, worker 0 has 0" in said
    assert not (tmp_path / "run").exists()


# Bugs caught: a worker that lacks a setting, or one of several that is alike and is named all the same.
def test_each_difference_names_its_worker():
    first = {"train": {"seed": 1, "epochs": 2}, "crops": [{"size": 8}]}
    assert differences([first, first]) == []
    assert differences(
        [first, {**first, "crops": [{"size": 9}]}, first, {**first, "train": {"seed": 1}}]
    ) == [
        "  worker 1 has crops [{'size': 9}], worker 0 has [{'size': 8}]",
        "  worker 3 has train.epochs None, worker 0 has 2",
    ]
