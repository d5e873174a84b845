"""A third-party linear classifier, from its file to a probe's run folder that predicts."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cli.errors import run_and_report
from cli.main import swav_tf
from swav_tf.data.decode import evaluation_view
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import load_any_recipe, load_recipe
from swav_tf.runs.model_facts import ModelFacts
from swav_tf.training.classifier import load_classifier
from swav_tf.training.classify import probe
from swav_tf.weights.convert import export_weights, import_weights
from swav_tf.weights.files import open_weights
from swav_tf.weights.formats import IMAGENET_MEAN
from swav_tf.weights.layout import Sizes, slots
from swav_tf.weights.torch_files import write_torch_file
from tests.classifiers import tiny_classifier_recipe
from tests.weights.released import features, random_state

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.228, 0.224, 0.225])
CLASSES = 1000


def linear(classes=CLASSES, width=2048, deviation=0.01, seed=5):
    """A classifier as the released linear probe has it."""
    draw = np.random.default_rng(seed)
    return {
        "module.linear.weight": draw.normal(0, deviation, (classes, width)).astype(np.float32),
        "module.linear.bias": draw.normal(0, 0.1, classes).astype(np.float32),
    }


# Bugs caught: a kernel that is turned the wrong way, another normalisation or view than the backbone's, names
# that slip by one, a folder that `predict` does not take.
def test_the_released_linear_probe_predicts_as_an_independent_forward(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    backbone, classifier = random_state(), linear(deviation=1e-5)  # for features of some thousands
    write_torch_file({f"module.{n}": a for n, a in backbone.items()}, tmp_path / "swav.pth.tar")
    write_torch_file(classifier, tmp_path / "eval_linear.pth.tar")
    names = [f"class {i} ü" for i in range(CLASSES)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n\n", encoding="utf-8")
    images = np.random.default_rng(3).integers(0, 256, (2, 70, 90, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")

    small = ["-o", "data.evaluation.resize=64", "-o", "data.evaluation.crop=64"]
    for words in (
        ["import", "swav.pth.tar", "--to", "released", *small],
        [
            "import",
            "eval_linear.pth.tar",
            "--backbone",
            "released",
            "--classes",
            "names.txt",
            "--to",
            "probe",
        ],
    ):
        assert run_and_report(swav_tf, ["weights", *words]) == 0, capsys.readouterr().err
    assert "probe: resnet50, 2048 features, linear classifier of 1000 classes" in capsys.readouterr().out
    assert run_and_report(swav_tf, ["predict", "probe", "photos", "--output", "found.json", "--quiet"]) == 0

    view = load_recipe("released/config.yaml").data.evaluation
    seen = np.stack([evaluation_view(image, view) for image in images]) / 255.0
    logits = features(backbone, ((seen - MEAN) / STD).transpose(0, 3, 1, 2)) @ (
        classifier["module.linear.weight"].astype(np.float64).T
    )
    logits += classifier["module.linear.bias"]
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    for row, found in zip(expected, json.loads((tmp_path / "found.json").read_text()), strict=True):
        assert [top["class"] for top in found["top"]] == [names[i] for i in np.argsort(-row)[:5]]
        np.testing.assert_allclose(
            [top["probability"] for top in found["top"]], np.sort(row)[:-6:-1], atol=1e-5
        )


# === Small networks ===

SIZES = Sizes("resnet_small", head=(24, 16), prototypes=12)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with swav.pth, linear.pth (5 classes) and wide.pth (of 256 features)."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    state = {slot.torch: draw.uniform(0.1, 0.5, slot.shape).astype(np.float32) for slot in slots(SIZES)}
    write_torch_file(state, tmp_path / "swav.pth")
    write_torch_file(linear(5, 128), tmp_path / "linear.pth")
    write_torch_file(linear(5, 256), tmp_path / "wide.pth")
    return tmp_path


# Bugs caught: a backbone in a file that is not taken as it is from a run; weights that an export and an import change;
# a file with both that asks for a backbone.
def test_from_files_and_back(folder):
    import_weights("swav.pth", "run", config="demo", overrides=["augment.std=[0.3, 0.2, 0.1]"])
    by_run = import_weights("linear.pth", "by_run", backbone="run")
    import_weights("linear.pth", "by_file", backbone="swav.pth")
    assert isinstance(by_run.recipe, ProbeRecipe)
    view = load_recipe("demo").data.evaluation
    assert by_run.recipe.data.evaluation == view
    facts = [ModelFacts.read(folder / name / "model.json") for name in ("by_run", "by_file")]
    assert [f.std for f in facts] == [(0.3, 0.2, 0.1), (0.228, 0.224, 0.225)]
    assert [f.class_names for f in facts] == [tuple("01234")] * 2
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    model = load_classifier("by_run")[0]  # a temporary one could be collected before its first trace
    before = model.probabilities(images).numpy()
    export_weights("by_run", "both.safetensors")
    import_weights("both.safetensors", "again")
    assert ModelFacts.read(folder / "again" / "model.json").std == (0.3, 0.2, 0.1)
    again = load_classifier("again")[0]
    np.testing.assert_array_equal(again.probabilities(images).numpy(), before)


# Bugs caught: a checkpoint whose images are normalized by ImageNet's numbers, not as in training; unknown ones made up.
def test_a_checkpoint_keeps_the_normalization(folder, logged):
    settings = ["augment.mean=[0.5, 0.5, 0.4]", "augment.std=[0.3, 0.2, 0.1]"]
    import_weights("swav.pth", "run", config="demo", overrides=settings)
    import_weights("linear.pth", "probe", backbone="run")
    for name in ("run", "probe"):
        export_weights(f"{name}/checkpoints/step-000000000", f"{name}.safetensors")
        found = open_weights(folder / f"{name}.safetensors")
        assert (found.mean, found.std) == ((0.5, 0.5, 0.4), (0.3, 0.2, 0.1))
    import_weights("linear.pth", "other", backbone="probe")  # the backbone of a probe
    assert ModelFacts.read(folder / "other" / "model.json").std == (0.3, 0.2, 0.1)
    export_weights("probe", "probe.pth", names="torchvision")
    assert logged[-1][1].endswith(
        "Export to .safetensors, which keeps them."
    )  # no import of a classifier takes others
    (folder / "probe" / "model.json").unlink()
    with pytest.raises(UsageError, match="does not record the mean and standard deviation"):
        import_weights("probe/checkpoints/step-000000000", "again")


# Bug caught: a file for PyTorch whose import normalizes images in another way, without a word.
@pytest.mark.parametrize("names", ["swav", "torchvision"])
def test_a_file_without_its_normalization_warns(folder, logged, names):
    import_weights("swav.pth", "run", config="demo", overrides=["augment.std=[0.3, 0.2, 0.1]"])
    export_weights("run", "x.pth", names=names)
    [warning] = [text for level, text in logged if level == "WARNING"]
    assert "-o 'augment.mean=[0.485, 0.456, 0.406]' -o 'augment.std=[0.3, 0.2, 0.1]'" in warning
    import_weights("x.pth", "usual")
    export_weights("usual", "usual.pth", names=names)  # has those that an import assumes
    export_weights("run", "x.safetensors", names=names)  # they are in its metadata
    found = open_weights(folder / "x.safetensors")
    assert found.std == (0.3, 0.2, 0.1)
    save_file(found.arrays, "foreign.safetensors", metadata={"mean": "of three runs", "std": "[1]"})
    assert open_weights(folder / "foreign.safetensors").mean == IMAGENET_MEAN
    assert [level for level, _ in logged].count("WARNING") == 1


# Bugs caught: a traceback, something half-written, settings that are dropped without a word.
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["linear.pth", "--to", "x"], "import ... --backbone RUN_OR_FILE"),
        (["linear.pth", "--to", "x", "--backbone", "none.pth"], "not found: none.pth"),
        (["linear.pth", "--to", "x", "--backbone", "linear.pth"], "has no backbone"),
        (["wide.pth", "--to", "x", "--backbone", "swav.pth"], "takes 256, swav.pth gives 128"),
        (["linear.pth", "--to", "x", "--backbone", "swav.pth", "--classes", "no.txt"], "--classes must be a readable"),
        (["linear.pth", "--to", "x", "--backbone", "swav.pth", "--classes", "four.txt"], "four.txt, 4 names"),
        (["linear.pth", "--to", "x", "--backbone", "swav.pth", "-c", "demo"], "of kind probe is needed"),
        (["linear.pth", "--to", "x.safetensors", "--backbone", "swav.pth"], "--backbone and --classes are for a run"),
        (["swav.pth", "--to", "x", "--backbone", "swav.pth"], "are for a classifier. swav.pth has none"),
        (["swav.pth", "--to", "x", "--classes", "four.txt"], "are for a classifier. swav.pth has none"),
        (["linear.pth", "--to", "x", "--backbone", "swav.pth", "--backbone-only"], "leaves out the classifier"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_together(folder, words, part, capsys):
    (folder / "four.txt").write_text("a\nb\nc\nd\n")
    before = sorted(path.name for path in folder.iterdir())
    assert run_and_report(swav_tf, ["weights", "import", *words]) == (1 if "no backbone" in part else 2)
    error = capsys.readouterr().err
    assert part in error, error
    assert sorted(path.name for path in folder.iterdir()) == before


# Bug caught: a probe that resumes in an imported folder and overwrites the published classifier.
def test_an_import_is_no_run_to_go_on_with(folder):
    import_weights("swav.pth", "run", config="demo")
    import_weights("linear.pth", "probed", backbone="run", config="probe_digits")
    recipe = load_any_recipe(folder / "probed" / "config.yaml")
    with pytest.raises(UsageError, match="probe: was imported, now sgd"):
        probe(recipe, model="run", run_dir="probed", quiet=True)
    with pytest.raises(UsageError, match="settings it was started with"):
        probe(tiny_classifier_recipe(ProbeRecipe), model="run", run_dir="probed", quiet=True)
