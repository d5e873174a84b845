import shutil

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from evaluate.backends import open_model
from evaluate.benchmark.plan import find_models
from evaluate.images import open_images
from swav_tf.data.views import stack_views, view_images
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import save_recipe
from swav_tf.recipe.pretraining import Model
from swav_tf.runs.checkpoint import CheckpointError, CheckpointStore
from swav_tf.runs.model_facts import ModelFacts
from swav_tf.training.build import load_swav, read_pretrained
from swav_tf.training.knn_monitor import readable_features
from swav_tf.training.state import named_variables
from tests.classifiers import tiny_classifier_recipe
from tests.evaluate.exported import make_exported
from tests.tiny_run import tiny_run


@pytest.fixture(scope="module")
def model():
    return open_model(tiny_run())


# Bugs caught: preprocessing that differs from the training's evaluation view (resize, crop, channel order,
# normalization), batch normalization in training mode, weights of another checkpoint.
def test_features_are_those_of_training(tmp_path, model):
    for number, photo in enumerate(load_sample_images().images):
        for side in (40, 90):
            small = cv2.resize(photo, (side * 2, side), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(tmp_path / f"{number}-{side}.jpg"), small[..., ::-1])
    images = open_images(str(tmp_path), like=model.data, kind="images")
    outputs = model.run(stack_views(list(view_images(images.source, range(4), model.input_view))))
    swav, recipe = load_swav(tiny_run())
    features, _ = readable_features(swav, images.source, range(4), recipe.data)
    assert features.std(axis=0).max() > 0.01
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-5, atol=1e-6)
    assert outputs["features"].shape == (4, model.feature_dim)

    # Projections are unit vectors, and scores their cosines with the prototypes.
    np.testing.assert_allclose(np.linalg.norm(outputs["projections"], axis=1), 1, rtol=1e-5)
    scores = outputs["projections"] @ swav.prototypes.kernel.numpy()
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-5)
    assert tuple(outputs) == model.outputs
    assert {output.dtype for output in outputs.values()} == {np.dtype(np.float32)}


# Bug caught: facts of another checkpoint than the one that runs.
def test_facts(model):
    assert (model.facts.step, model.facts.recipe, model.facts.runner) == (11, "tiny", "keras")
    state = tiny_run() / "checkpoints" / "step-000000011" / "state.json"
    assert f'"sha256": "{model.facts.weights_sha256}"' in state.read_text()


# Bug caught: momentum and queue counted as bytes of the model.
def test_bytes():
    [found] = find_models([tiny_run()])
    assert found.bytes == sum(v.numpy().nbytes for v in named_variables(load_swav(tiny_run())[0]).values())


# Bug caught: a run and the export of another one, taken for one model as their folders have the same name.
def test_a_run_beside_the_export_of_another(tmp_path):
    name = tiny_run().name
    export = make_exported(tmp_path / name, ("fp32",))
    assert [model.name for model in find_models([export, tiny_run()])] == [name, f"{name} (run)"]


# Bug caught: images of another size or type that are run.
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 32, 32, 3), np.float32), ((1, 30, 32, 3), np.uint8), ((0, 32, 32, 3), np.uint8)]
)
def test_other_images_are_refused(model, shape, dtype):
    with pytest.raises(ValueError, match=r"uint8 \(n, 32, 32, 3\)"):
        model.run(np.zeros(shape, dtype))


# Bugs caught: a traceback for other files and folders, an older checkpoint in place of a damaged one.
def test_paths_that_are_not_models(tmp_path):
    (tmp_path / "model.plan").write_bytes(b"")
    (tmp_path / "x.txt").write_bytes(b"")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run(), copy)
    weights = copy / "checkpoints" / "step-000000011" / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for path, error, message in (
        (tmp_path / "nowhere", UsageError, "which does not exist"),
        (tmp_path, UsageError, "a folder without config.yaml"),
        (tmp_path / "model.plan", UsageError, r"model.plan.json"),
        (tmp_path / "x.txt", UsageError, r"x.txt, a file"),
        (copy, CheckpointError, "is damaged"),
    ):
        with pytest.raises(error, match=message):
            open_model(path)
    with pytest.raises(UsageError, match="apply to ONNX files only"):
        open_model(tmp_path / "model.plan", provider="cuda")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        open_model(copy)


# Bug caught: 'must be a pretrain checkpoint of step 0. Received: probe', although the run to give is known.
@pytest.mark.parametrize("reader", [open_model, lambda folder: find_models([folder]), read_pretrained])
@pytest.mark.parametrize(
    ("kind", "what", "origin", "instead"),
    [
        (ProbeRecipe, "a probe", {"run": "runs/first"}, "it was trained from, runs/first, or"),
        (ProbeRecipe, "a probe", {"backbone": "runs/released"}, "it was trained from, runs/released, or"),
        (FinetuneRecipe, "a fine-tuned run", {"run": "runs/first"}, "it was trained from, runs/first, or"),
        (FinetuneRecipe, "a fine-tuned run", {"weights": "random"}, "it was trained from, or, where an ONNX"),
        (FinetuneRecipe, "a fine-tuned run", None, "it was trained from, or, where an ONNX"),
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
