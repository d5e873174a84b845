"""A linear classifier on a backbone: the model of the probe and of fine-tuning, its train step, and how to load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swav_tf.method.loss_scale import LossScale
from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.model.backbone import build_backbone
from swav_tf.model.replicas import replica_count, sum_over_replicas, update_on_all_replicas
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_any_recipe, load_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import best_step, read_checkpoint
from swav_tf.runs.model_facts import NAME, ModelFacts
from swav_tf.training.build import dtype_policy, read_pretrained
from swav_tf.training.state import assign_arrays, named_variables

Batch = tuple[tf.Tensor, tf.Tensor]  # crops uint8 (b, 1, size, size, 3), classes int64 (b,)


@keras.saving.register_keras_serializable("swav_tf")
class Classifier(ReplicatedModel):
    """A backbone with a dense layer on its pooled features (docs/algorithm.md, "Linear probe").

    Args:
        class_count: number of classes, C.
        frozen: keep the backbone unchanged: inference mode, no gradient, no moving averages.
        **common: arguments of `ReplicatedModel`: backbone, mean, std, loss_scale and accumulation_steps.
    """

    parts = ("backbone", "classifier")

    def __init__(self, *, class_count: int, frozen: bool, **common: Any) -> None:
        super().__init__(name="classifier_model", **common)
        self.frozen = frozen
        self.backbone.trainable = not frozen
        self.classifier = keras.layers.Dense(
            class_count,
            kernel_initializer=keras.initializers.RandomNormal(0.0, 0.01),
            dtype="float32",
            name="classifier",
        )
        self.classifier.build((None, self.backbone.output_shape[-1]))
        self.finish_init()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor in the form of Keras' files."""
        return {**super().get_config(), "class_count": self.classifier.units, "frozen": self.frozen}

    # === Forward ===

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return logits (n, C), float32, of uint8 images (n, size, size, 3)."""
        features = self.backbone(self.normalize(images), training=training and not self.frozen)
        if self.frozen:
            features = tf.stop_gradient(features)
        return self.classifier(tf.cast(features, tf.float32))

    @tf.function(autograph=False, reduce_retracing=True)
    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Return probabilities (n, C), float32, of uint8 images (n, size, size, 3), in inference mode."""
        return tf.nn.softmax(self(images, training=False))

    # === One step, as one replica sees it ===

    def train_step(self, batch: Batch, requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """Do one optimizer step on this replica's share of a complete batch."""
        return self._update(*self._learn(batch), requests)

    def _learn(self, batch: Batch) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Return the gradients of the scaled loss, and this share's (loss, top-1 accuracy)."""
        crops, labels = batch
        with tf.GradientTape() as tape:
            logits = self(crops[:, 0], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
            scaled = loss * self.loss_scale.factor
        correct = tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)
        return self._gradients(tape, scaled), tf.stack([loss, tf.reduce_mean(correct)])

    def _update(
        self, gradients: Sequence[tf.Tensor], measures: tf.Tensor, requests: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Sum over replicas, decide once for all of them, then update."""
        gradients, finite, logs = self._mean_gradients(gradients)
        measures, requests = sum_over_replicas([measures, requests])
        rates = self.optimizer.rate_of_each()
        logs |= {
            "loss": measures[0] / float(replica_count()),
            "top1": measures[1] / float(replica_count()),
            "learning_rate": rates[-1],  # the classifier's variables come last
            "requests": requests,
        }
        if not self.frozen:
            logs["backbone_learning_rate"] = rates[0]
        applied = [finite] * len(gradients)
        update_on_all_replicas(
            self.optimizer.updates(gradients, self.trainable_variables, applied)
            + self.loss_scale.updates(finite)
        )
        return logs

    def _accumulate(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Return (loss, top-1 accuracy) of a part and the statistics of its batch normalizations."""
        with self.statistics.collect() as statistics:
            gradients, measures = self._learn(batch)
        self._add_to_sums(gradients)
        return measures, statistics[0]

    def _finish(
        self, parts: Sequence[tuple[tf.Tensor, tf.Tensor]], requests: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        measures, statistics = zip(*parts, strict=True)
        self.statistics.move_averages(statistics)
        return self._update(self._take_sums(), tf.reduce_mean(tf.stack(measures), axis=0), requests)

    def _make_step_in_parts(self) -> Callable[[list[Batch], tf.Tensor], dict[str, Any]]:
        accumulate, finish = self.on_replicas(self._accumulate), self.on_replicas(self._finish)
        return lambda parts, requests: finish([accumulate(part) for part in parts], requests)


# === Build and load ===


@dataclass(frozen=True)
class Start:
    """The backbone that a classifier is trained on."""

    recipe: Recipe  # of the pretraining: architecture, mean and std of images
    weights: Mapping[str, np.ndarray] | None  # arrays by name; None: random
    origin: dict[str, Any]  # where the weights came from, for summaries

    def build(self, recipe: ProbeRecipe | FinetuneRecipe, *, class_count: int) -> Classifier:
        """Build a classifier on this backbone, under the current strategy; it is not compiled."""
        model = build_classifier(recipe, self.recipe, class_count)
        if self.weights is not None:
            targets = named_variables(model, ["backbone"])
            assign_arrays(targets, self.weights, what="The checkpoint does not fit its recipe")
        return model


def start_from(model: Path | str, *, from_scratch: bool = False) -> Start:
    """Read the backbone of a pretraining run, or with `from_scratch` only the architecture, also of a recipe."""
    if from_scratch:
        config = Path(model) / "config.yaml"
        recipe = load_recipe(config if config.exists() else model)
        return Start(recipe, None, {"weights": "random", "recipe": recipe.name})
    checkpoint, recipe = read_pretrained(model)
    weights = {name: array for name, array in checkpoint.arrays.items() if name.startswith("backbone/")}
    origin = {
        "weights": "pretrained",
        "recipe": recipe.name,
        "run": str(model),
        "step": checkpoint.step,
        "sha256": checkpoint.facts["sha256"],
    }
    return Start(recipe, weights, origin)


def build_classifier(
    recipe: ProbeRecipe | FinetuneRecipe, architecture: Recipe | ModelFacts, class_count: int
) -> Classifier:
    """Build a classifier with the recipe's seed, under the current strategy; it is not compiled.

    `architecture` contains the backbone and the normalization of its images.
    """
    keras.utils.set_random_seed(recipe.train.seed)
    model = architecture.model
    # Statistics in training mode are over all replicas, even if they were not in pretraining.
    batch_norm = model.batch_norm.model_copy(update={"synchronised": True})
    with dtype_policy(recipe.train.precision):
        backbone = build_backbone(model.model_copy(update={"batch_norm": batch_norm}))
    normalization = architecture.augment if isinstance(architecture, Recipe) else architecture
    return Classifier(
        backbone=backbone,
        class_count=class_count,
        frozen=recipe.learning_rates[0] is None,
        mean=normalization.mean,
        std=normalization.std,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )


def load_classifier(
    run_dir: Path | str, *, best: bool = False
) -> tuple[Classifier, ProbeRecipe | FinetuneRecipe, ModelFacts]:
    """Load the model of a probe or fine-tuning run, its recipe and its facts.

    Its weights are the newest, or with `best` those of the epoch with the highest validation accuracy.

    Raises:
        UsageError: no such run, it has no checkpoint, or config.yaml or model.json was changed.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    run_dir = Path(run_dir)
    wanted = f"A folder of `swav-tf probe` or `swav-tf finetune` is needed. Received: {run_dir}"
    if not (run_dir / "config.yaml").exists():
        raise UsageError(f"{wanted}, without config.yaml.")
    recipe = load_any_recipe(run_dir / "config.yaml")
    if isinstance(recipe, Recipe):
        raise UsageError(f"{wanted}, a pretraining run. Its probes are often in folders below it.")
    facts = ModelFacts.read(run_dir / NAME)
    step = best_step(run_dir) if best else None
    checkpoint = read_checkpoint(run_dir, recipe, step=step)
    model = build_classifier(recipe, facts, len(facts.class_names))
    assign_arrays(
        named_variables(model), checkpoint.arrays, what=f"{checkpoint.path} does not fit model.json"
    )
    return model, recipe, facts
