"""The base of all trained models: steps on replicas, sums before decisions, requests between workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from swav_tf.method.feature_queue import FeatureQueue
from swav_tf.method.loss_scale import LossScale
from swav_tf.method.optimizers import MomentumOptimizer, norms
from swav_tf.model.batch_norm import StatisticsOfParts
from swav_tf.model.replicas import per_replica_variable, replica_count, sum_over_replicas
from swav_tf.plumbing.errors import UsageError

TrainFunction = Callable[[Iterator[Any]], dict[str, float]]


class ReplicatedModel(keras.Model):
    """A backbone and what is trained on it; a step sums over replicas first and decides on the sum.

    A subclass creates its other weights, calls `finish_init`, and defines `train_step` and the same in parts.

    Args:
        name: of the model.
        backbone: normalized images (n, size, size, 3) to features (n, F).
        mean, std: of the three channels of images in [0, 1].
        loss_scale: factor on the loss, for half precision.
        accumulation_steps: parts of a batch, which come one after the other.
    """

    parts: ClassVar[tuple[str, ...]]  # attributes that hold the weights: their names in a checkpoint

    def __init__(
        self,
        *,
        name: str,
        backbone: keras.Model,
        mean: Sequence[float],
        std: Sequence[float],
        loss_scale: LossScale,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__(name=name)
        self.backbone = backbone
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self.loss_scale = loss_scale
        self.accumulation_steps = accumulation_steps
        self.statistics = StatisticsOfParts()
        self.queue: FeatureQueue | None = None
        # What this worker requests after the step, and what all workers agreed on: a request of any worker counts.
        self.requests = np.zeros(2, np.float32)  # stop, write a checkpoint
        self.agreed = np.zeros(2, bool)
        # Sums of metrics over the finite steps of an epoch; in an object, since Keras replaces a model's dictionaries.
        self.epoch = SimpleNamespace(sums=Counter())
        self.train_function: TrainFunction | None = None
        self.batches_in_use: Iterator[Any] | None = None

    def finish_init(self) -> None:
        """Create what depends on the weights; a subclass calls it at the end of its own `__init__`."""
        self.built = True
        if self.accumulation_steps > 1:
            self.gradient_sums = [
                per_replica_variable(tf.zeros(v.shape), f"gradient_sum_{i}")
                for i, v in enumerate(self.trainable_variables)
            ]

    # === What Keras' `save` and `load_model` call ===

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor in the form of Keras' files."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "precision": self.backbone.dtype_policy.name,  # which Keras keeps of layers, not of models
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "loss_scale": {"enabled": self.loss_scale.enabled, "growth_steps": self.loss_scale.growth_steps},
            "accumulation_steps": self.accumulation_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Build the model that `get_config` described."""
        backbone = keras.saving.deserialize_keras_object(config["backbone"], custom_objects)
        backbone.dtype_policy = config["precision"]
        config = {key: value for key, value in config.items() if key != "precision"}
        return cls(**config | {"backbone": backbone, "loss_scale": LossScale(**config["loss_scale"])})

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was; Keras itself leaves models with an own `compile` uncompiled."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _state(self) -> dict[str, tf.Variable]:
        """Return the variables that are not weights."""
        state = {"loss_factor": self.loss_scale.factor, "finite_steps": self.loss_scale.finite_steps}
        if self.queue is not None:
            state |= {"queue": self.queue.projections, "pushed": self.queue.pushed}
        return state

    def save_own_variables(self, store: Any) -> None:
        """Store the queue, of several replicas the first one's, and the loss scale."""
        for name, variable in self._state().items():
            store[name] = self.distribute_strategy.experimental_local_results(variable)[0].numpy()

    def load_own_variables(self, store: Any) -> None:
        """Restore what was stored; a file of weights from before this was saved has nothing."""
        for name, variable in self._state().items():
            if name in store.keys():  # noqa: SIM118, a store of Keras
                value = tf.constant(store[name][()])
                self.distribute_strategy.run(variable.assign, args=(value,))

    # === Features ===

    @tf.function(autograph=False, reduce_retracing=True)
    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Return features (n, F), float32, of uint8 images (n, size, size, 3), in inference mode."""
        return tf.cast(self.backbone(self.normalize(images), training=False), tf.float32)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """Convert uint8 images to the backbone's input: (x / 255 - mean) / std."""
        images = (tf.cast(images, tf.float32) / 255.0 - self.mean) / self.std
        return tf.cast(images, self.backbone.compute_dtype)

    # === One step, as one replica sees it ===

    def _gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        variables = [variable.value for variable in self.trainable_variables]
        gradients: list[tf.Tensor] = tape.gradient(
            loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return gradients

    def _mean_gradients(
        self, gradients: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]:
        """Return the complete batch's gradients, whether they are finite, and their metrics."""
        divisor = self.loss_scale.factor * float(replica_count() * self.accumulation_steps)
        gradients = [gradient / divisor for gradient in sum_over_replicas(gradients)]
        norm = tf.norm(norms(gradients))
        finite = tf.math.is_finite(norm)  # as all of its terms are
        logs = {
            "gradient_norm": norm,
            "finite": tf.cast(finite, tf.float32),
            "loss_scale": tf.identity(self.loss_scale.factor),
        }
        return gradients, finite, logs

    def _add_to_sums(self, gradients: Sequence[tf.Tensor]) -> None:
        for total, gradient in zip(self.gradient_sums, gradients, strict=True):
            total.assign_add(gradient)

    def _take_sums(self) -> list[tf.Tensor]:
        """Return the gradients of all parts of the batch, and reset the sums."""
        gradients = [tf.identity(total.read_value()) for total in self.gradient_sums]
        with tf.control_dependencies(gradients):
            for total in self.gradient_sums:
                total.assign(tf.zeros_like(total))
        return gradients

    # === What Keras' `fit` calls ===

    def compile(self, optimizer: Any = "rmsprop", **settings: Any) -> None:
        """Compile with one of this package's optimizers, whose steps are decided on sums over replicas."""
        if not isinstance(optimizer, MomentumOptimizer):
            name = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
            raise UsageError(
                f"The optimizer must be LARS, Adam or SGD of swav_tf.method.optimizers, which can skip a step on all "
                f"replicas. Received: {name}."
            )
        # The model scales the loss itself: Keras decides on one replica's gradients.
        super().compile(optimizer=optimizer, **{"jit_compile": False, "auto_scale_loss": False} | settings)
        optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Skip the build, for which Keras would draw a batch and average its uint8 images over replicas."""

    def _next(self, iterator: Iterator[Any]) -> Any:
        """Return the next batch; keep the iterator alive while Python calls of its data set run."""
        self.batches_in_use = iterator
        return next(iterator)

    def make_train_function(self, force: bool = False) -> TrainFunction:
        """Return a function that does one step from an iterator of batches, or of their parts.

        Keras' own fails on scalars under MultiWorkerMirroredStrategy and does not support accumulation.
        """
        if self.train_function is not None and not force:
            return self.train_function
        step, step_in_parts = self.on_replicas(self.train_step), self._make_step_in_parts()

        def train_function(iterator: Iterator[Any]) -> dict[str, float]:
            requests = tf.constant(self.requests)
            batch, *others = [self._next(iterator) for _ in range(self.accumulation_steps)]
            return self._to_host(
                step_in_parts([batch, *others], requests) if others else step(batch, requests)
            )

        self.train_function = train_function
        return train_function

    def _make_step_in_parts(self) -> Callable[[list[Any], tf.Tensor], dict[str, Any]]:
        """Return a function that does one step on the parts of a batch."""
        raise NotImplementedError

    def on_replicas(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a traced function that every replica computes from its own arguments.

        Without AutoGraph, as in Keras' own trainer: no step branches on a tensor, and tracing takes half as long.
        """
        strategy = self.distribute_strategy

        def run(*arguments: Any) -> Any:
            return strategy.run(function, args=arguments)

        # Otherwise TensorFlow takes these for one function that is traced too often, and warns.
        run.__code__ = run.__code__.replace(co_name=function.__name__)
        return tf.function(run, autograph=False, reduce_retracing=True)

    def _to_host(self, logs: dict[str, Any]) -> dict[str, float]:
        """Return a step's metrics, and keep in `agreed` what the workers agreed on."""
        # Summed over replicas already, so all replicas have the same.
        local = {
            key: self.distribute_strategy.experimental_local_results(v)[0].numpy() for key, v in logs.items()
        }
        self.agreed = local.pop("requests") > 0
        self._keep(local)
        figures = {key: float(value) for key, value in local.items()}
        if figures["finite"]:
            self.epoch.sums.update(figures)
        return figures

    def reset_metrics(self) -> None:
        """Begin an epoch: Keras' `fit` calls this."""
        super().reset_metrics()
        self.epoch.sums.clear()

    def _get_metrics_result_or_logs(self, logs: dict[str, float]) -> dict[str, float]:
        """Return what `fit` reports of an epoch: means over its finite steps; settings as of its last step."""
        steps = self.epoch.sums["finite"]
        if not steps:
            return logs
        at_end = ("finite", "loss_scale")
        return {
            key: value if key in at_end or key.endswith("learning_rate") else self.epoch.sums[key] / steps
            for key, value in logs.items()
        }

    def _keep(self, local: dict[str, np.ndarray]) -> None:
        """Remove from a step's metrics those that are not single numbers."""
