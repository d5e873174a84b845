"""One kind of step in a process of its own, which does one when it is told to and says what that took.

    echo '{"do": "step"}' | python -m benchmarks.step_worker KIND [RECIPE OVERRIDES ...]

A kind is swav, swav_jit, bare, supervised, torch or torch_compiled. Each line of stdin is a wish, each line of
stdout its answer.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from swav_tf.recipe.files import load_recipe
from swav_tf.recipe.pretraining import Recipe

STEPS_PER_EPOCH = 312  # of ImageNet at batch 4096: the rate is in its warm-up


class Step:
    """Does steps; what it cannot do, it has no method for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def step(self, rate: float | None) -> dict[str, float]:
        raise NotImplementedError

    def many(self, count: int) -> dict[str, float]:
        """So many steps, none of which is waited for before the last has been started."""
        raise NotImplementedError


def random_crops(recipe: Recipe) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    size = recipe.train.batch_size
    return [
        generator.integers(0, 256, (size, g.count, g.size, g.size, 3), dtype=np.uint8) for g in recipe.crops
    ]


class SwavStep(Step):
    """Ours, as `fit` calls it, on as many replicas as the recipe makes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        import tensorflow as tf

        from swav_tf.training.build import build_swav
        from swav_tf.training.cluster import build_strategy

        strategy = build_strategy(recipe.train)
        with strategy.scope():
            self.model = build_swav(recipe, steps_per_epoch=STEPS_PER_EPOCH)
        replicas = strategy.num_replicas_in_sync

        def share(group: np.ndarray) -> Any:
            if replicas == 1:
                return tf.constant(group)
            shares = np.split(group, replicas)
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(shares[context.replica_id_in_sync_group])
            )

        self.crops = tuple(share(group) for group in random_crops(recipe))
        self.wishes = tf.zeros([2])
        self.launch = self.on_replicas()

    def on_replicas(self) -> Callable[..., Any]:
        return self.model.on_replicas(self.model.train_step)

    def step(self, rate: float | None) -> dict[str, float]:
        logs = self.model._to_host(
            self.launch(self.crops, self.wishes)
        )  # what `fit` does of a batch in one part
        return {"loss": logs["loss"], "rate": logs["learning_rate"]}

    def many(self, count: int) -> dict[str, float]:
        begun = time.perf_counter()
        for _ in range(count):
            logs = self.launch(self.crops, self.wishes)
        launched = time.perf_counter() - begun
        float(logs["loss"])
        return {"launch_s": launched}

    def gpu_memory(self) -> float:
        """The most of a GPU's memory that was held, 10^6 bytes."""
        import tensorflow as tf

        return float(tf.config.experimental.get_memory_info("GPU:0")["peak"]) / 1e6

    def save(self, path: str) -> None:
        """The weights by PyTorch's names."""
        from swav_tf.training.state import named_variables
        from swav_tf.weights.layout import as_torch

        arrays = {name: variable.numpy() for name, variable in named_variables(self.model).items()}
        np.savez(path, **{name: tensor.read() for name, tensor in as_torch(arrays).items()})


class CompiledSwavStep(SwavStep):
    """The whole step by XLA: on one device only, since XLA takes no part in collectives."""

    def on_replicas(self) -> Callable[..., Any]:
        import tensorflow as tf

        return tf.function(self.model.train_step, jit_compile=True)


class BareStep(Step):
    """Forward, backward and update of the same crops, network and optimiser; no codes, no SwAV loss."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        import tensorflow as tf

        from swav_tf.model.replicas import update_on_all_replicas
        from swav_tf.training.build import build_swav
        from swav_tf.training.cluster import build_strategy

        build_strategy(recipe.train)  # for what it sets
        model = build_swav(recipe, steps_per_epoch=STEPS_PER_EPOCH)
        crops = tuple(tf.constant(group) for group in random_crops(recipe))

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

        self.function = step

    def step(self, rate: float | None) -> dict[str, float]:
        return {"loss": float(self.function())}


class SupervisedStep(Step):
    """Forward, backward and update of the backbone with a classifier on one 224-pixel image a row."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        import tensorflow as tf

        from swav_tf.training.build import build_swav
        from swav_tf.training.cluster import build_strategy

        build_strategy(recipe.train)  # for what it sets
        model = build_swav(recipe)
        batch = recipe.train.batch_size
        images = tf.constant(random_crops(recipe)[0][:, 0])
        labels = tf.constant(np.arange(batch) % 1000)
        kernel = tf.Variable(tf.random.normal([model.backbone.output_shape[-1], 1000], stddev=0.01))
        trainable = model.backbone.trainable_variables

        @tf.function
        def step() -> tf.Tensor:
            variables = [*(v.value for v in trainable), kernel]
            with tf.GradientTape() as tape:
                logits = model.backbone(model.normalise(images), training=True) @ kernel
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
                )
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(0.01 * gradient)
            return loss

        self.function = step

    def step(self, rate: float | None) -> dict[str, float]:
        return {"loss": float(self.function())}


class OfTorch(Step):
    """PyTorch's; it must be told the rate, and may be given our weights."""

    compiled = False

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        from benchmarks.torch_step import TorchStep

        self.function = TorchStep(recipe, random_crops(recipe), compiled=self.compiled)

    def step(self, rate: float | None) -> dict[str, float]:
        return {"loss": float(self.function(0.3 if rate is None else rate))}

    def many(self, count: int) -> dict[str, float]:
        begun = time.perf_counter()
        for _ in range(count):
            loss = self.function(0.3)
        launched = time.perf_counter() - begun
        float(loss)
        return {"launch_s": launched}

    def gpu_memory(self) -> float:
        import torch

        return torch.cuda.max_memory_allocated() / 1e6

    def load(self, path: str) -> None:
        with np.load(path) as weights:
            self.function.load(dict(weights))


class OfCompiledTorch(OfTorch):
    """PyTorch's, its network by torch.compile."""

    compiled = True


KINDS: dict[str, Callable[[Recipe], Step]] = {
    "swav": SwavStep, "swav_jit": CompiledSwavStep, "bare": BareStep, "supervised": SupervisedStep,
    "torch": OfTorch, "torch_compiled": OfCompiledTorch,
}  # fmt: skip


def peak_megabytes() -> float:
    """The most memory that this process held, 10^6 bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    step = KINDS[arguments.kind](load_recipe("swav_100ep", arguments.overrides))
    for line in sys.stdin:
        wish = json.loads(line)
        answer: dict[str, Any] = {}
        if wish["do"] == "step":
            cpu, wall = time.process_time(), time.perf_counter()
            answer = step.step(wish.get("rate"))
            answer |= {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        elif wish["do"] == "many":
            wall = time.perf_counter()
            answer = step.many(wish["count"])
            answer |= {"wall_s": time.perf_counter() - wall}
        elif wish["do"] == "peak":
            answer = {"megabytes": peak_megabytes()}
        elif wish["do"] == "gpu_memory":
            answer = {"megabytes": step.gpu_memory()}
        else:
            getattr(step, wish["do"])(wish["path"])  # save, load
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
