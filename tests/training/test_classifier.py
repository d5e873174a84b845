import keras
import numpy as np
import pytest
import tensorflow as tf

from swav_tf.model.backbone import build_backbone
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.training.classify import compile_classifier
from swav_tf.training.state import capture, restore
from tests.classifiers import MEAN, STD, bare_classifier, labeled_batches, tiny_classifier_recipe
from tests.replicas import REPLICAS
from tests.swav_models import tiny_recipe


def train(model, batches):
    step = model.make_train_function()
    return [step(iter([(tf.constant(x), tf.constant(y, tf.int64))])) for x, y in batches]


# Bugs caught: wrong normalization, a loss that is a sum, shifted labels, decoupled weight decay: compared with NumPy in
# float64 from the frozen features on.
def test_probe_steps_equal_float64():
    recipe = tiny_classifier_recipe(ProbeRecipe, optimizer__weight_decay=0.01)
    model = bare_classifier(recipe)
    weights, bias = (v.numpy().astype(np.float64) for v in model.classifier.weights)
    assert abs(weights.std() / 0.01 - 1) < 0.4
    assert not bias.any()
    batches = labeled_batches(4)
    logs = train(model, batches)
    buffers = [np.zeros_like(weights), np.zeros_like(bias)]
    for i, (images, labels) in enumerate(batches):
        normalised = ((images[:, 0] / 255.0 - MEAN) / STD).astype(np.float32)
        features = model.backbone(normalised, training=False).numpy().astype(np.float64)
        logits = features @ weights + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert logs[i]["loss"] == pytest.approx(-np.log(probabilities[range(8), labels]).mean(), rel=1e-4)
        assert logs[i]["top1"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
        error = (probabilities - np.eye(4)[labels]) / 8
        rate = 0.3 if i < 3 else 0.15  # the second of two epochs: (1 + cos(pi / 2)) / 2
        assert logs[i]["learning_rate"] == pytest.approx(rate)
        for j, (value, gradient) in enumerate([(weights, features.T @ error), (bias, error.sum(axis=0))]):
            buffers[j] = 0.9 * buffers[j] + gradient + 0.01 * value
            value -= rate * buffers[j]
    np.testing.assert_allclose(model.classifier.kernel.numpy(), weights, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(model.classifier.bias.numpy(), bias, rtol=1e-3, atol=1e-6)


# Bugs caught: the classifier's rate on the backbone or the other way round.
def test_each_part_has_its_own_rate():
    def change(**rates):
        model = bare_classifier(tiny_classifier_recipe(FinetuneRecipe, **rates))
        kernels = model.backbone.get_layer("conv").kernel, model.classifier.kernel
        kernels[0].assign(np.random.default_rng(1).normal(size=kernels[0].shape) * 0.1)
        kernels[1].assign(np.random.default_rng(2).normal(size=kernels[1].shape) * 0.1)
        before = [kernel.numpy() for kernel in kernels]
        [logs] = train(model, labeled_batches(1))
        return [kernel.numpy() - old for kernel, old in zip(kernels, before, strict=True)], logs

    (conv, dense), logs = change()
    (slow_conv, same_dense), slow_logs = change(optimizer__backbone_learning_rate=0.0125)
    np.testing.assert_allclose(slow_conv, conv / 4, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(same_dense, dense, rtol=1e-5)
    assert (logs["backbone_learning_rate"], logs["learning_rate"]) == pytest.approx((0.05, 0.2))
    assert slow_logs["backbone_learning_rate"] == pytest.approx(0.0125)


# Bugs caught: gradients of the last part only, a sum that is not divided, sums that are not cleared.
def test_a_batch_in_parts_equals_an_undivided_one():
    batches = labeled_batches(3)
    complete = bare_classifier(tiny_classifier_recipe(FinetuneRecipe))
    parts = bare_classifier(tiny_classifier_recipe(FinetuneRecipe, train__accumulation_steps=2))
    for one, other in zip(complete.weights, parts.weights, strict=True):
        other.assign(one)
    complete_logs = train(complete, batches)
    step = parts.make_train_function()
    for (images, labels), logs in zip(batches, complete_logs, strict=True):
        pieces = zip(tf.split(images, 2), tf.split(tf.constant(labels, tf.int64), 2), strict=True)
        assert step(iter(pieces))["loss"] == pytest.approx(logs["loss"], rel=1e-5)
    for one, other in zip(complete.weights, parts.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)


# Bugs caught: batch statistics of one replica, gradients that are summed instead of averaged, weights that drift apart.
def test_two_replicas_equal_one_with_synchronised_batch_norm(mirrored):
    recipe = tiny_classifier_recipe(FinetuneRecipe)
    settings = tiny_recipe().model
    batches = labeled_batches(3, size=16, pixels=16)
    single = bare_classifier(recipe, build_backbone(settings))
    with mirrored.scope():
        double = bare_classifier(recipe, build_backbone(settings))
    for one, other in zip(single.weights, double.weights, strict=True):
        other.assign(one)
    moving = [v for v in single.backbone.weights if "moving_mean" in v.path]
    before = [v.numpy() for v in moving]
    logs = train(single, batches)
    assert all((v.numpy() != old).any() for v, old in zip(moving, before, strict=True))  # in training mode
    step = double.make_train_function()
    for (images, labels), log in zip(batches, logs, strict=True):
        shares = [np.split(images, REPLICAS), np.split(labels, REPLICAS)]

        def of_replica(context, shares=shares):
            i = context.replica_id_in_sync_group
            return tf.constant(shares[0][i]), tf.constant(shares[1][i], tf.int64)

        both = mirrored.experimental_distribute_values_from_function(lambda c: of_replica(c)[0])
        labels_of_both = mirrored.experimental_distribute_values_from_function(lambda c: of_replica(c)[1])
        assert step(iter([(both, labels_of_both)]))["loss"] == pytest.approx(log["loss"], rel=2e-3)
    for one, other in zip(single.weights, double.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-2, atol=2e-3, err_msg=one.path)


# Bug caught: a non-finite gradient that reaches the weights, in half precision where the loss scale must fall.
def test_a_non_finite_step_changes_no_weight_and_halves_the_loss_scale():
    recipe = tiny_classifier_recipe(ProbeRecipe, train__precision="mixed_float16")
    model = bare_classifier(recipe)
    model.backbone.get_layer("conv").bias.assign([np.nan] * 10)
    before = capture(model, batch_size=8)
    [logs] = train(model, labeled_batches(1))
    after = capture(model, batch_size=8)
    assert logs["finite"] == 0
    assert after["loss_scale/factor"] == before["loss_scale/factor"] / 2
    for name in ("classifier/kernel", "momentum/classifier/kernel"):
        np.testing.assert_array_equal(before[name], after[name])


# Bug caught: a frozen backbone whose variables get an optimiser's buffer or a rate.
def test_a_probe_trains_two_variables():
    model = bare_classifier(tiny_classifier_recipe(ProbeRecipe), build_backbone(tiny_recipe().model))
    assert [v.path.rpartition("/")[2] for v in model.trainable_variables] == ["kernel", "bias"]
    assert len(model.optimizer.momentums) == len(model.optimizer.rates) == 2
    compile_classifier(model, tiny_classifier_recipe(ProbeRecipe, optimizer__learning_rate=1.0), 3)
    assert model.optimizer.rates == [1.0, 1.0]


# Bug caught: a checkpoint without the seeds of dropout (KerasCV's backbones have some), after which a resumed run
# drops other units.
def test_dropout_resumes_at_the_same_place():
    recipe = tiny_classifier_recipe(FinetuneRecipe)

    def fresh():
        keras.utils.set_random_seed(3)
        images = keras.Input((None, None, 3))
        found = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, name="conv")(images))
        return bare_classifier(recipe, keras.Model(images, keras.layers.Dropout(0.5)(found)))

    model, batches = fresh(), labeled_batches(4)
    train(model, batches[:2])
    state = capture(model, batch_size=8)
    resumed = fresh()
    restore(resumed, state, batch_size=8)
    losses = [[logs["loss"] for logs in train(m, batches[2:])] for m in (model, resumed)]
    assert losses[0] == losses[1]
