"""One kind of training step in a process of its own, run by benchmarks.step and benchmarks.gpu.

    echo '{"do": "step"}' | python -m benchmarks.step_worker KIND [RECIPE OVERRIDES ...]

Each line of stdin names a method of the kind and its arguments, each line of stdout is the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from swav_tf.plumbing.system import peak_memory
from swav_tf.recipe.files import load_recipe
from swav_tf.recipe.pretraining import Recipe

STEPS_PER_EPOCH = 312  # of ImageNet at batch 4096: the learning rate is in its warm-up


def random_crops(recipe: Recipe) -> list[np.ndarray]:
    generator, size = np.random.default_rng(0), recipe.train.batch_size
    shapes = [(size, group.count, group.size, group.size, 3) for group in recipe.crops]
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


class Step:
    """A training step on random crops."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.launch = self.build()

    def build(self) -> Callable[[], Any]:
        """Return a function that starts a step and returns its loss."""
        raise NotImplementedError

    def step(self) -> dict[str, float]:
        return {"loss": float(self.launch())}

    def many(self, count: int) -> dict[str, float]:
        """Start all steps before waiting for the last."""
        begun = time.perf_counter()
        for _ in range(count):
            loss = self.launch()
        launched = time.perf_counter() - begun
        float(loss)
        return {"launch_s": launched}

    def peak(self) -> dict[str, float]:
        return {"megabytes": (peak_memory() or 0) / 1e6}

    def gpu_memory(self) -> dict[str, float]:
        import tensorflow as tf

        return {"megabytes": float(tf.config.experimental.get_memory_info("GPU:0")["peak"]) / 1e6}


class SwavStep(Step):
    """Our step as `fit` calls it, on as many replicas as the recipe requests."""

    def build(self) -> Callable[[], Any]:
        import tensorflow as tf

        from swav_tf.training.build import build_swav
        from swav_tf.training.cluster import build_strategy

        strategy, _ = build_strategy(self.recipe.train)
        with strategy.scope():
            self.model = build_swav(self.recipe, steps_per_epoch=STEPS_PER_EPOCH)
        replicas = strategy.num_replicas_in_sync

        def share(group: np.ndarray) -> Any:
            if replicas == 1:
                return tf.constant(group)
            shares = np.split(group, replicas)
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(shares[context.replica_id_in_sync_group])
            )

        crops = tuple(share(group) for group in random_crops(self.recipe))
        none = tf.zeros([2])
        run = self.model.on_replicas(self.model.train_step)
        self.run = lambda: run(crops, none)
        return lambda: self.run()["loss"]

    def step(self) -> dict[str, float]:
        logs = self.model._to_host(self.run())  # as `fit` does
        return {"loss": logs["loss"], "rate": logs["learning_rate"]}

    def save(self, path: str) -> None:
        """Write the weights by PyTorch's names."""
        from swav_tf.training.state import named_variables
        from swav_tf.weights.layout import as_torch

        arrays = {name: variable.numpy() for name, variable in named_variables(self.model).items()}
        np.savez(path, **as_torch(arrays))


class BareStep(Step):
    """Forward, backward and update of the same crops, network and optimizer; no codes, no SwAV loss."""

    def build(self) -> Callable[[], Any]:
        import tensorflow as tf

        from swav_tf.model.replicas import update_on_all_replicas
        from swav_tf.training.build import build_swav
        from swav_tf.training.cluster import build_strategy

        build_strategy(self.recipe.train)  # for its settings of TensorFlow
        model = build_swav(self.recipe, steps_per_epoch=STEPS_PER_EPOCH)
        crops = tuple(tf.constant(group) for group in random_crops(self.recipe))

        @tf.function
        def step() -> tf.Tensor:
            with tf.GradientTape() as tape:
                projections, scores = model(crops, training=True)
                loss = tf.reduce_mean(tf.square(scores))
            variables = [v.value for v in model.trainable_variables]
            gradients = tape.gradient(loss, variables)
            always = [tf.constant(True)] * len(variables)
            update_on_all_replicas(model.optimizer.updates(gradients, model.trainable_variables, always))
            return loss + 0.0 * tf.reduce_sum(projections)

        return step


class PytorchStep(Step):
    """PyTorch's step; it takes the learning rate and can take our weights."""

    def build(self) -> Callable[[], Any]:
        from benchmarks.torch_swav import TorchStep

        self.torch_step = TorchStep(self.recipe, random_crops(self.recipe))
        return lambda: self.torch_step(0.3)

    def step(self, rate: float = 0.3) -> dict[str, float]:
        return {"loss": float(self.torch_step(rate))}

    def gpu_memory(self) -> dict[str, float]:
        import torch

        return {"megabytes": torch.cuda.max_memory_allocated() / 1e6}

    def load(self, path: str) -> None:
        with np.load(path) as weights:
            self.torch_step.load(dict(weights))


KINDS: dict[str, type[Step]] = {
    "swav": SwavStep,
    "bare": BareStep,
    "torch": PytorchStep,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    step = KINDS[arguments.kind](load_recipe("swav_100ep", arguments.overrides))
    for line in sys.stdin:
        request = json.loads(line)
        method = getattr(step, request.pop("do"))
        cpu, wall = time.process_time(), time.perf_counter()
        answer = method(**request) or {}
        answer |= {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
