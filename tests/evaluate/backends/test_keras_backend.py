import shutil

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from evaluate.backends import open_model
from evaluate.benchmark.artifacts import find_artifacts
from evaluate.images import open_images
from swav_tf.data.views import stack_views, view_images
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import save_recipe
from swav_tf.recipe.pretraining import Model
from swav_tf.runs.checkpoint import CheckpointError, CheckpointStore
from swav_tf.runs.model_facts import ModelFacts
from swav_tf.training.build import load_swav, read_pretrained
from swav_tf.training.features import extract_features
from tests.classifiers import tiny_classifier_recipe
from tests.tiny_run import tiny_run


@pytest.fixture(scope="session")
def run_dir():
    return tiny_run()


@pytest.fixture(scope="session")
def runner(run_dir):
    return open_model(run_dir)


# Bugs caught: preprocessing that differs from the training's evaluation view (resize, crop, channel order,
# normalisation), batch normalisation in training mode, weights of another checkpoint.
def test_features_are_those_of_training(tmp_path, run_dir, runner):
    for number, photo in enumerate(load_sample_images().images):
        for side in (40, 90):
            small = cv2.resize(photo, (side * 2, side), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(tmp_path / f"{number}-{side}.jpg"), small[..., ::-1])
    images = open_images(str(tmp_path), like=runner.data, kind="images")
    views = stack_views(list(view_images(images.source, range(4), runner.input_view)))
    outputs = runner.run(views)
    model, recipe = load_swav(run_dir)
    features = extract_features(model, images.source, range(4), recipe.data)
    assert features.std(axis=0).max() > 0.01
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-5, atol=1e-6)
    assert outputs["features"].shape == (4, runner.feature_dim)

    # Projections are unit vectors, and scores their cosines with the prototypes.
    np.testing.assert_allclose(np.linalg.norm(outputs["projections"], axis=1), 1, rtol=1e-5)
    scores = outputs["projections"] @ model.prototypes.kernel.numpy()
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-5)
    assert {output.dtype for output in outputs.values()} == {np.dtype(np.float32)}


# Bug caught: facts of another checkpoint than the one that runs.
def test_facts(run_dir, runner):
    assert (runner.facts.step, runner.facts.recipe, runner.facts.runner) == (11, "tiny", "keras")
    assert (
        f'"sha256": "{runner.facts.weights_sha256}"'
        in (run_dir / "checkpoints" / "step-000000011" / "state.json").read_text()
    )


# Bug caught: images of another size or type that are run all the same.
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 30, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_other_images_are_refused(runner, images):
    with pytest.raises(ValueError, match=r"uint8 \(n, 32, 32, 3\)"):
        runner.run(images)


# Bugs caught: a traceback for what is no run folder, an older checkpoint taken for a damaged one without a word.
def test_what_is_no_model(tmp_path, run_dir):
    with pytest.raises(UsageError, match="which does not exist"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"a folder without config.yaml"):
        open_model(tmp_path)
    (tmp_path / "model.plan").write_bytes(b"")
    with pytest.raises(UsageError, match=r"An engine is model.plan with model.plan.json beside it"):
        open_model(tmp_path / "model.plan")
    (tmp_path / "x.txt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"x.txt, a file"):
        open_model(tmp_path / "x.txt")
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    weights = copy / "checkpoints" / "step-000000011" / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        open_model(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        open_model(copy)


# Bug caught: 'must be a pretrain checkpoint of step 0. Received: probe': the folder is whole, and what to give is known.
@pytest.mark.parametrize("reader", [open_model, lambda folder: find_artifacts([folder]), read_pretrained])
@pytest.mark.parametrize(
    ("kind", "what", "origin", "instead"),
    [
        (ProbeRecipe, "a probe", {"run": "runs/first"}, "as they are: give that run, runs/first."),
        (ProbeRecipe, "a probe", {"backbone": "runs/released"}, "give that run, runs/released."),
        (FinetuneRecipe, "a fine-tuned run", {"run": "runs/first"}, "it was made from, runs/first."),
        (FinetuneRecipe, "a fine-tuned run", {"weights": "random"}, "it was made from. Or `swav-tf export"),
        (FinetuneRecipe, "a fine-tuned run", None, "it was made from. Or `swav-tf export"),
    ],
)
def test_a_classifiers_run_names_the_run_to_give(tmp_path, reader, kind, what, origin, instead):
    recipe = tiny_classifier_recipe(kind)
    save_recipe(recipe, tmp_path / "config.yaml")
    CheckpointStore(tmp_path / "checkpoints", kind=recipe.kind).write(0, {"x": np.zeros(1)}, {})
    if origin is not None:
        facts = ModelFacts(Model(), (0.5,) * 3, (0.2,) * 3, ("a", "b"), "sgd", origin, 3, "0" * 64)
        facts.write(tmp_path / "model.json")
    with pytest.raises(UsageError, match="A pretraining run is needed here") as error:
        reader(tmp_path)
    assert f"{tmp_path}, {what}. " in str(error.value)
    assert instead in str(error.value)
