"""The linear probe as a job: what it leaves alone, what it refuses, what it writes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from swav_tf.data.decode import evaluation_view
from swav_tf.data.digits import Digits
from swav_tf.plumbing.errors import DataError, RecipeError, UsageError
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.runs.checkpoint import CheckpointError, CheckpointStore
from swav_tf.training import probe as probe_module
from swav_tf.training.classifier_folder import load_classifier
from swav_tf.training.probe import probe, probe_cached
from tests.classifiers import pretraining_run, tiny_classifier_recipe
from tests.training.runs import lines


def share_right(run_dir, recipe):
    """Top-1 accuracy of the saved model on the test digits, counted here."""
    model, _, _ = load_classifier(run_dir)
    digits = Digits("test")
    views = np.stack([evaluation_view(digits.read(i), recipe.data.evaluation) for i in range(360)])
    return np.mean(model.probabilities(views).numpy().argmax(axis=1) == [digits.label(i) for i in range(360)])


# Bugs caught: batch normalisation in training mode, a gradient or decay that reaches the backbone, moving averages
# that move; a best epoch that is the last, a figure under another's name, a file that is missing.
def test_a_probe_leaves_the_backbone_and_a_whole_folder(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(
        ProbeRecipe, train__epochs=4, optimizer__learning_rate=0.3, optimizer__weight_decay=0.01
    )
    result = probe(recipe, model=pretrained, run_dir=tmp_path, quiet=True)
    begun = CheckpointStore(pretrained / "checkpoints", kind="pretrain").read(5).arrays
    ended = CheckpointStore(tmp_path / "checkpoints", kind="probe").read(44).arrays
    backbone = [name for name in begun if name.startswith("backbone/")]
    assert len(backbone) > 10
    for name in backbone:
        np.testing.assert_array_equal(begun[name], ended[name], err_msg=name)
    assert not any(name.startswith("momentum/backbone") for name in ended)
    assert (np.abs(ended["classifier/kernel"]) > 0).all()

    found = lines(tmp_path, "validation")
    tops = [line["top1"] for line in found]
    assert [line["step"] for line in found] == [11, 22, 33, 44]
    summary = result.summary
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["last"]["epoch"], summary["last"]["top1"]) == (4, tops[-1])
    assert (summary["best"]["epoch"], summary["best"]["top1"]) == (1 + int(np.argmax(tops)), max(tops))
    assert share_right(tmp_path, recipe) == pytest.approx(tops[-1])
    assert (summary["train_images"], summary["validation_images"]) == (1437, 360)

    with (tmp_path / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list("0123456789")
    assert sum(int(row["images"]) for row in rows) == 360
    right = sum(int(row["images"]) * float(row["top1"]) for row in rows)
    assert right / 360 == pytest.approx(summary["last"]["top1"])
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 300

    # A run that has ended is only looked at again.
    again = probe(recipe, model=pretrained, run_dir=tmp_path, quiet=True)
    assert again.summary["resumed_from_step"] == 44
    assert again.summary["last"] == summary["last"]
    model, _, facts = load_classifier(tmp_path)
    assert facts.origin["step"] == 5
    np.testing.assert_array_equal(model.classifier.kernel.numpy(), result.model.classifier.kernel.numpy())


# Bugs caught: a probe that goes on from a pretraining checkpoint, or moves a pretraining run away.
@pytest.mark.parametrize("job", [probe, probe_cached])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_pretraining_folder_is_refused_and_untouched(pretrained, job, fresh):
    before = sorted(path.name for path in pretrained.iterdir() if path.name != ".lock")
    with pytest.raises(UsageError, match="holds a pretrain run; a probe run neither goes on"):
        job(
            tiny_classifier_recipe(ProbeRecipe), model=pretrained, run_dir=pretrained, fresh=fresh, quiet=True
        )
    assert sorted(path.name for path in pretrained.iterdir() if path.name != ".lock") == before


# Bugs caught: a run that goes on with another backbone, other images, or as another kind of probe.
def test_a_run_goes_on_only_with_what_it_began_with(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(ProbeRecipe, train__epochs=1, train__batch_size=700)
    probe(recipe, model=pretrained, run_dir=tmp_path / "run", quiet=True)
    (tmp_path / "list.txt").write_text("\n".join(f"digits/{i}" for i in (0, 1)))
    for changes, what in (
        ({"from_scratch": True}, "weights: was"),
        (
            {"recipe": recipe.model_copy(update={"subset": str(tmp_path / "two.txt")})},
            "number of training images",
        ),
    ):
        if "recipe" in changes:
            from swav_tf.data.digits import Digits

            digits = Digits("train")
            names = [digits.image_name(i) for i in range(700)]
            (tmp_path / "two.txt").write_text("\n".join(names))
        arguments = {
            "recipe": recipe,
            "model": pretrained,
            "run_dir": tmp_path / "run",
            "quiet": True,
            **changes,
        }
        with pytest.raises(UsageError, match=what):
            probe(arguments.pop("recipe"), **arguments)
    with pytest.raises(UsageError, match="probe: was sgd, now cached features"):
        probe_cached(recipe, model=pretrained, run_dir=tmp_path / "run", quiet=True)


# Bug caught: a penalty that is chosen on the validation images; figures that are not of the saved classifier.
def test_a_cached_probe_knows_the_validation_labels_only_at_the_end(tmp_path, pretrained, monkeypatch):
    recipe = tiny_classifier_recipe(ProbeRecipe, cached__penalties=(0.1, 1e-3))
    seen = []
    original = probe_module.choose_penalty
    monkeypatch.setattr(
        probe_module,
        "choose_penalty",
        lambda f, y, **k: seen.append((f.shape, len(y))) or original(f, y, **k),
    )
    result = probe_cached(recipe, model=pretrained, run_dir=tmp_path, quiet=True)
    assert seen == [((1437, 128), 1437)]
    assert set(result.summary["held_out_top1"]) == {"0.1", "0.001"}
    assert result.summary["last"]["top1"] == pytest.approx(share_right(tmp_path, recipe))


# Bug caught: training that begins before it is known that data, recipe or weights are wrong.
def test_what_is_wrong_is_told_before_training(tmp_path, pretrained):
    def refuse(error, match, model=pretrained, **changes):
        with pytest.raises(error, match=match):
            probe(
                tiny_classifier_recipe(ProbeRecipe, **changes),
                model=model,
                run_dir=tmp_path / "run",
                quiet=True,
            )
        assert not (tmp_path / "run" / "checkpoints").exists()

    (tmp_path / "empty.txt").write_text("\n\n")
    refuse(DataError, "contains no name", subset=str(tmp_path / "empty.txt"))
    refuse(DataError, "validation_split must be set", data__validation_split=None)
    refuse(RecipeError, "1437 images do not fill one batch of 2000", train__batch_size=2000)
    refuse(UsageError, "must hold config.yaml", model=tmp_path)
    damaged = pretraining_run(tmp_path / "damaged")
    (damaged / "checkpoints" / "step-000000005" / "state.safetensors").write_bytes(b"0")
    refuse(CheckpointError, "damaged", model=damaged)
