"""What a worker times: a model on one provider."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluate.benchmark.runner_facts import RUNNERS
from swav_tf.recipe.pretraining import EvaluationView

if TYPE_CHECKING:
    from evaluate.backends.onnx_backend import OnnxBackend


Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Target:
    """One model, ready for one size of batch.

    Attributes:
        view: of its images.
        host: from uint8 images in the host's memory (batch, side, side, 3) to arrays there.
        device: the same with input and outputs in the GPU's memory, waiting until it is done; None where
            they are not apart.
        cuda_graph: whether its launches are recorded as a CUDA graph.
        notes: what was not done as asked.
        weights_sha256: of its weights.
    """

    view: EvaluationView
    host: Callable[[np.ndarray], Outputs]
    device: Callable[[], None] | None
    cuda_graph: bool
    notes: tuple[str, ...]
    weights_sha256: str


def random_images(view: EvaluationView, batch: int) -> np.ndarray:
    """uint8 (batch, crop, crop, 3), the same at every call."""
    return np.random.default_rng(0).integers(0, 256, (batch, view.crop, view.crop, 3), dtype=np.uint8)


def open_target(runner: str, path: Path, *, batch: int, threads: int, cuda_graph: bool) -> Target:
    """Opens a model.

    Args:
        runner: a key of RUNNERS.
        path: what it takes.
        batch: images in a call.
        threads: that compute a batch on a CPU; 0: one per core.
        cuda_graph: record launches where the runner can.

    Raises:
        SwavError: it cannot be run.
    """
    facts = RUNNERS[runner]
    if runner in ("ort-cuda", "ort-tensorrt"):
        assert facts.provider is not None
        return _open_on_gpu(path, facts.provider, batch, cuda_graph)
    if runner == "tensorrt":
        return _open_engine(path, batch, cuda_graph)
    if facts.peer:
        from evaluate.benchmark.torch_peer import open_peer

        return open_peer(runner, path, batch=batch, threads=threads)
    from evaluate.backends import open_model

    if runner == "keras" and threads:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)  # it is read when TensorFlow loads
    opened = open_model(path, threads=threads) if runner == "ort-cpu" else open_model(path)
    return Target(opened.input_view, opened.run, None, False, (), opened.facts.weights_sha256)


def _open_on_gpu(path: Path, provider: str, batch: int, cuda_graph: bool) -> Target:
    """ONNX Runtime with everything bound; without a CUDA graph, and a word about it, where there can be none."""
    from evaluate.backends.onnx_backend import OnnxBackend

    notes: tuple[str, ...] = ()
    if cuda_graph:
        try:
            return _bound(OnnxBackend(path, provider=provider, cuda_graph=True), batch, True, notes)
        except Exception as error:  # ONNX Runtime's errors have no common class but this
            notes = (f"no CUDA graph: {str(error).splitlines()[0][:200]}",)
    return _bound(OnnxBackend(path, provider=provider), batch, False, notes)


def _bound(runner: OnnxBackend, batch: int, cuda_graph: bool, notes: tuple[str, ...]) -> Target:
    bound = runner.bound(random_images(runner.input_view, batch))
    for _ in range(3):  # the first runs record the graph: what it cannot do shows now
        bound.run()
    return Target(
        runner.input_view,
        lambda images: bound.run_from_host(runner.metadata.preprocessing.apply(images)),
        bound.run,
        cuda_graph,
        notes,
        runner.facts.weights_sha256,
    )


def _open_engine(path: Path, batch: int, cuda_graph: bool) -> Target:
    from evaluate.backends.tensorrt_backend import TensorrtBackend

    runner = TensorrtBackend(path, cuda_graph=cuda_graph)
    compute: list[Callable[[], None]] = []

    def on_device() -> None:
        if not compute:  # made when it is first wanted: until then the buffers are those of `run`
            compute.append(runner.computation(random_images(runner.input_view, batch)))
        compute[0]()

    return Target(
        runner.input_view, runner.run, on_device, runner.cuda_graph, (), runner.facts.weights_sha256
    )
