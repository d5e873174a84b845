import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from swav_tf.method.loss_scale import LossScale
from swav_tf.method.optimizers import LARS
from swav_tf.method.sinkhorn import sinkhorn
from swav_tf.method.swav import SwAV
from swav_tf.model.head import Prototypes
from swav_tf.plumbing.errors import UsageError
from swav_tf.training.build import build_swav, dtype_policy
from swav_tf.training.state import capture, restore
from tests.swav_models import (
    PROTOTYPES,
    SMALL,
    backbone_without_bn,
    batches_of_crops,
    head_without_bn,
    tiny_recipe,
    train_mirrored,
)

KERAS_CV = {
    "model__backbone": {
        "library": "keras_cv",
        "name": "DenseNetBackbone",
        "arguments": {"stackwise_num_repeats": [1], "growth_rate": 4},
    }
}


def assert_close(one, other, *, relative):
    for name, value in one.items():
        if name.endswith(("head/hidden/bias", "backbone/conv1_bn/gamma")):
            continue  # what BN removes has a gradient of rounding only, which LARS scales like any other
        error = np.linalg.norm(value - other[name]) / max(np.linalg.norm(value), 1e-6)
        assert error < relative, f"{name}: relative difference {error:.2e}"


# Bugs caught: codes, statistics or gradients of one replica only; means of sums; drifting copies.
# A backbone of KerasCV: batch normalization of one replica's images, or averages that move once a part.
@pytest.mark.parametrize(
    ("accumulation", "backbone"), [(1, {"model__backbone": SMALL}), (2, {}), (2, KERAS_CV)]
)
def test_two_replicas_equal_one(mirrored, accumulation, backbone):
    recipe = tiny_recipe(method__queue={"length": 16}, train__accumulation_steps=accumulation, **backbone)
    batches = batches_of_crops(recipe, 4)
    one = build_swav(recipe)
    weights = one.get_weights()
    logs = [one.train_on_crops(batch) for batch in batches]
    two, two_logs = train_mirrored(mirrored, recipe, batches, weights)
    for a, b in zip(logs, two_logs, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-6)
    expected = capture(one, batch_size=8)
    if accumulation == 2:
        # A replica pushes its rows of both parts together, in another order, which does not affect the codes.
        slots = expected["queue/projections"].reshape(2, 2, 8, -1)
        expected["queue/projections"] = slots[:, :, [0, 1, 4, 5, 2, 3, 6, 7]].reshape(2, 16, -1)
    assert_close(expected, capture(two, batch_size=8), relative=1e-3)
    for variable in two.weights:
        first, second = (copy.numpy() for copy in mirrored.experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second, err_msg=variable.path)


# Bugs caught: half precision that breaks the L2 norm, BN or codes, or that replicas do differently.
def test_bfloat16_learns_like_float32_on_one_and_on_two_replicas(mirrored):
    recipe = tiny_recipe(train__precision="mixed_bfloat16", train__batch_size=4)
    batches = batches_of_crops(recipe, 2)
    one = build_swav(recipe, steps_per_epoch=10)
    weights = one.get_weights()
    exact = build_swav(tiny_recipe(train__batch_size=4), steps_per_epoch=10)
    exact.set_weights(weights)
    logs = [one.train_on_crops(batch) for batch in batches]
    exact_logs = [exact.train_on_crops(batch) for batch in batches]
    _, two_logs = train_mirrored(mirrored, recipe, batches, weights, steps_per_epoch=10)
    for half, full, two in zip(logs, exact_logs, two_logs, strict=True):
        assert half["finite"] == two["finite"] == 1
        assert half["loss"] == pytest.approx(full["loss"], rel=0.05)
        assert two["loss"] == pytest.approx(full["loss"], rel=0.05)
    assert {v.dtype for v in one.trainable_variables} == {"float32"}


# Bug caught: float16 that overflows, or a loss scale that is left in the gradients. (A network without BN: float16
# convolutions take a hundred times as long on a CPU.)
def test_float16_learns_like_float32():
    recipe = tiny_recipe()
    batches = batches_of_crops(recipe, 2)
    full = plain_model(recipe)
    with dtype_policy("mixed_float16"):
        half = plain_model(recipe)
    half.loss_scale = LossScale(enabled=True, initial=64.0)
    assert half.backbone.layers[1].compute_dtype == "float16"
    for batch in batches:
        a, b = full.train_on_crops(batch), half.train_on_crops(batch)
        assert b["finite"] == 1
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=0.05)


# Bug caught: a loss scale that is reset at every restart.
def test_the_loss_scale_is_part_of_the_state():
    recipe = tiny_recipe(train__precision="mixed_float16")
    model, again = build_swav(recipe), build_swav(recipe)
    model.loss_scale.factor.assign(128.0)
    model.loss_scale.finite_steps.assign(77)
    restore(again, capture(model, batch_size=8), batch_size=8)
    assert float(again.loss_scale.factor.numpy()) == 128
    assert int(again.loss_scale.finite_steps.numpy()) == 77


# Bugs caught: a file of `model.save` without the queue, the loss scale, the momentum or a setting.
def test_keras_files_keep_the_complete_state(tmp_path):
    changes = {"train__precision": "mixed_float16", "train__accumulation_steps": 2}
    model = build_swav(tiny_recipe(method__queue={"length": 16}, **changes), steps_per_epoch=3)
    draw = np.random.default_rng(0)
    for variable in (model.queue.projections, *model.optimizer.momentums[:2]):
        variable.assign(draw.normal(size=variable.shape))
    model.queue.pushed.assign(7)
    model.loss_scale.factor.assign(64.0)
    model.optimizer.iterations.assign(5)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    expected, found = capture(model, batch_size=8), capture(again, batch_size=8)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    settings = ("method", "queue", "loss_scale", "accumulation_steps", "mean", "std")
    assert [again.get_config()[key] for key in settings] == [model.get_config()[key] for key in settings]
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert again.backbone.compute_dtype == "float16"


def plain_model(recipe):
    """Build a SwAV without batch normalization: the parts of a batch are independent."""
    keras.utils.set_random_seed(0)
    model = SwAV(
        backbone=backbone_without_bn(),
        head=head_without_bn(),
        prototypes=Prototypes(PROTOTYPES, name="prototypes"),
        method=recipe.method,
        mean=recipe.augment.mean,
        std=recipe.augment.std,
        queue=None,
        loss_scale=LossScale(enabled=False),
        accumulation_steps=recipe.train.accumulation_steps,
    )
    optimizer = LARS(2.0)
    model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
    optimizer.build(model.trainable_variables)
    return model


# Bugs caught: codes of a part instead of the batch; a sum of gradients where the mean must be.
def test_accumulated_parts_equal_the_large_batch():
    complete, parts = tiny_recipe(), tiny_recipe(train__accumulation_steps=4)
    batches = batches_of_crops(complete, 3)
    one, many = plain_model(complete), plain_model(parts)
    for batch in batches:
        a, b = one.train_on_crops(batch), many.train_on_crops(batch)
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    assert_close(capture(one, batch_size=8), capture(many, batch_size=8), relative=1e-5)


# Bugs caught: running averages that move once a part, or in the pass for the codes; variances without that of the means.
def test_accumulation_moves_running_averages_once_a_step():
    recipe = tiny_recipe(train__accumulation_steps=2)
    [batch] = batches_of_crops(recipe, 1)
    model = build_swav(recipe)
    [bn] = [layer for layer in model.head.layers if layer.name == "hidden_bn"]
    means, variances = [], []
    for part in ([g[:4] for g in batch], [g[4:] for g in batch]):
        reference = build_swav(recipe)
        reference(tuple(tf.constant(g) for g in part), training=True)
        [reference_bn] = [layer for layer in reference.head.layers if layer.name == "hidden_bn"]
        means.append(reference_bn.moving_mean.numpy().astype(np.float64) / 0.1)
        variances.append((reference_bn.moving_variance.numpy().astype(np.float64) - 0.9) / 0.1)
    model.train_on_crops(batch)
    variance = np.mean(variances, axis=0) + np.var(means, axis=0)
    np.testing.assert_allclose(bn.moving_mean, 0.1 * np.mean(means, axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(bn.moving_variance, 0.9 + 0.1 * variance, rtol=1e-5)


# Bugs caught: prototypes never unfrozen, unfrozen a step early or late, or moved by momentum or decay meanwhile.
def test_prototypes_are_frozen_for_exactly_so_many_steps():
    recipe = tiny_recipe(method__prototypes_frozen_steps=3)
    model = build_swav(recipe, steps_per_epoch=10)
    kernels = [model.prototypes.kernel.numpy()]
    [index] = [i for i, v in enumerate(model.trainable_variables) if v is model.prototypes.kernel]
    for number, batch in enumerate(batches_of_crops(recipe, 4)):
        model.train_on_crops(batch)
        kernels.append(model.prototypes.kernel.numpy())
        momentum = model.optimizer.momentums[index].numpy()
        assert np.any(momentum) == (number >= 3)
    for frozen in kernels[1:4]:
        np.testing.assert_allclose(frozen, kernels[0], atol=1e-6)
    assert np.abs(kernels[4] - kernels[0]).max() > 1e-5


# Bug caught: prototypes of any length: scores that are not cosines.
def test_prototypes_are_unit_vectors_when_a_step_begins():
    recipe = tiny_recipe()
    model = build_swav(recipe)
    model.prototypes.kernel.assign(3.0 * model.prototypes.kernel.numpy())
    [batch] = batches_of_crops(recipe, 1)
    reference = build_swav(recipe)
    assert model.train_on_crops(batch)["loss"] == pytest.approx(
        reference.train_on_crops(batch)["loss"], rel=1e-5
    )


# Bug caught: prototypes with a bias, or trained in half precision.
def test_prototypes_have_no_bias_and_are_float32():
    model = build_swav(tiny_recipe(train__precision="mixed_bfloat16"))
    assert [v.path for v in model.prototypes.weights] == ["prototypes/kernel"]
    assert model.prototypes.compute_dtype == "float32"
    assert model.backbone.compute_dtype == "bfloat16"


# Bugs caught: a queue that is accepted and ignored; codes of the queue's rows instead of the batch's.
def test_codes_are_balanced_with_the_queue_once_it_is_full():
    recipe = tiny_recipe(method__queue={"length": 8})
    model = build_swav(recipe)
    first, second = batches_of_crops(recipe, 2)
    projections, scores = model(tuple(map(tf.constant, first)), training=False)
    alone = model.codes(projections, scores)
    np.testing.assert_allclose(alone, sinkhorn(scores[:2], epsilon=0.05, iterations=3), rtol=1e-5)
    model.queue.push(projections[:2], step=tf.constant(0), wanted=tf.constant(True))
    new_projections, new_scores = model(tuple(map(tf.constant, second)), training=False)
    both = tf.concat([scores[:2], new_scores[:2]], axis=1)
    expected = sinkhorn(both, epsilon=0.05, iterations=3)[:, 8:]
    np.testing.assert_allclose(model.codes(new_projections, new_scores), expected, rtol=1e-4, atol=1e-6)


# Bug caught: groups of crops of one size that are normalized apart.
def test_groups_of_one_size_go_through_the_backbone_together():
    model = build_swav(tiny_recipe())
    large, small = map(tf.constant, batches_of_crops(tiny_recipe(), 1)[0])
    together, _ = model((large, small, small[:, :1]), training=True)
    expected, _ = model((large, tf.concat([small, small[:, :1]], axis=1)), training=True)
    np.testing.assert_allclose(together, expected, atol=1e-5)


# Bug caught: crops of one image spread over rows: row b of a view must be row b of every other.
def test_row_b_of_every_crop_is_image_b():
    recipe = tiny_recipe()
    model = build_swav(recipe)
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 1, 3), dtype=np.uint8)
    crops = tuple(
        tf.constant(np.broadcast_to(images, (8, g.count, g.size, g.size, 3)).copy()) for g in recipe.crops
    )
    projections, _ = model(crops, training=False)
    # Each crop of a row is one flat colour; the two of one size must agree exactly, and rows must differ.
    np.testing.assert_allclose(projections[0], projections[1], atol=1e-6)
    np.testing.assert_allclose(projections[2], projections[3], atol=1e-6)
    similarity = np.einsum("id,jd->ij", projections[0], projections[2])
    assert np.all(similarity.argmax(axis=1) == np.arange(8))


# Bug caught: std .229, or a scale of [0, 255].
def test_images_are_normalized_by_the_recipe():
    model = build_swav(tiny_recipe())
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    expected = (image / 255.0 - [0.485, 0.456, 0.406]) / [0.228, 0.224, 0.225]
    np.testing.assert_allclose(model.normalize(tf.constant(image)), expected, rtol=1e-5, atol=1e-6)


class OverflowOnSecondReplica(keras.layers.Layer):
    """Features that are infinite on one replica only."""

    def call(self, x):
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0  # Keras builds it once without replicas
        return x * tf.where(tf.equal(replica, 1), math.inf, 1.0)


# Bug caught: 'finite?' decided on one replica's own gradients: the copies drift apart.
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_non_finite_gradient_on_one_replica_skips_the_step_on_all(mirrored, precision):
    recipe = tiny_recipe()
    with mirrored.scope():
        model = plain_model(recipe)
        model.loss_scale = LossScale(enabled=precision == "mixed_float16")
        before = [variable.numpy() for variable in model.weights]
        healthy = model.backbone
        inputs = keras.Input((None, None, 3))
        model.backbone = keras.Model(inputs, OverflowOnSecondReplica()(healthy(inputs)))
    [batch] = batches_of_crops(recipe, 1)
    shares = tuple(
        mirrored.experimental_distribute_values_from_function(
            lambda context, g=group: tf.constant(np.split(g, 2)[context.replica_id_in_sync_group])
        )
        for group in batch
    )
    step = model.make_train_function()
    logs = step(iter([shares]))
    assert logs["finite"] == 0
    for variable, value in zip(model.weights, before, strict=True):
        for copy in mirrored.experimental_local_results(variable.value):
            np.testing.assert_allclose(copy.numpy(), value, atol=1e-6)
    assert int(model.optimizer.iterations.numpy()) == 1
    assert float(model.loss_scale.factor.numpy()) == (2.0**14 if precision == "mixed_float16" else 1.0)
    assert all(np.all(momentum.numpy() == 0) for momentum in model.optimizer.momentums)


# Bug caught: a scale that reaches the update, so that LARS sees other gradients.
def test_the_loss_scale_changes_no_update():
    recipe = tiny_recipe()
    [batch] = batches_of_crops(recipe, 1)
    plain, scaled = plain_model(recipe), plain_model(recipe)
    scaled.loss_scale = LossScale(enabled=True, initial=1024.0)
    a, b = plain.train_on_crops(batch), scaled.train_on_crops(batch)
    assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
    for one, other in zip(plain.weights, scaled.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-7)


# Bug caught: a scale that never grows, or never falls below 1.
def test_loss_scale_halves_and_doubles():
    scale = LossScale(enabled=True, initial=4.0, growth_steps=2)
    factors = []
    for finite in (True, True, True, False, False, False, False):
        for variable, update, arguments in scale.updates(tf.constant(finite)):
            update(variable, *arguments)
        factors.append(float(scale.factor))
    assert factors == [4, 8, 8, 4, 2, 1, 1]


# Bugs caught: a fit that cannot be driven by plain Keras; an epoch's figures that are those of its last batch.
def test_fit_trains_with_keras_callbacks():
    recipe = tiny_recipe()
    batches = batches_of_crops(recipe, 4)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tuple(tf.TensorSpec(g.shape, tf.uint8) for g in batches[0])
    )
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs))
    history = build_swav(recipe).fit(dataset, epochs=1, verbose=0, callbacks=[callback])
    model = build_swav(recipe)
    logs = [model.train_on_crops(batch) for batch in batches]
    assert [log["loss"] for log in seen] == pytest.approx([log["loss"] for log in logs], rel=1e-4)
    for key in ("loss", "gradient_norm"):
        assert history.history[key] == [pytest.approx(np.mean([log[key] for log in seen]), rel=1e-6)]
    assert history.history["learning_rate"] == [pytest.approx(logs[-1]["learning_rate"])]


# Bug caught: an AttributeError in the first step.
@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam()])
def test_another_optimizer_is_refused_at_compile(optimizer):
    with pytest.raises(UsageError, match=r"must be LARS, Adam or SGD.*Received: [aA]dam"):
        plain_model(tiny_recipe()).compile(optimizer=optimizer)
