"""Look at a folder of images and at this machine, for `-c auto`."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

import numpy as np

from swav_tf.data.decode import UndecodableImage
from swav_tf.data.sources import open_source, read_image, recognized
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.auto import ImageFacts, Machine
from swav_tf.recipe.data import Data

SAMPLE: Final = 48  # images that are decoded
GRAY_TOLERANCE: Final = 4  # between channels: JPEG rounds them


def survey(data: Data) -> ImageFacts:
    """Return facts about images, of which a sample is decoded.

    Raises:
        DataError: there are no images, or none of the sample can be decoded.
    """
    data = recognized(data)
    source, path = open_source(data), data.path or data.kind
    sides, grays, seconds = [], [], []
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).round().astype(int)):
        began = time.perf_counter()
        with contextlib.suppress(UndecodableImage, OSError):  # training reports and counts them
            image = read_image(source, int(index))
            seconds.append(time.perf_counter() - began)
            sides.append(min(image.shape[:2]))
            pixels = image.astype(np.int16)
            grays.append(int(np.ptp(pixels, axis=2).max()) <= GRAY_TOLERANCE)
    if not sides:
        raise DataError(
            f"None of {SAMPLE} images of {path} can be decoded. Run `swav-tf data check` for details."
        )
    return ImageFacts(
        path=path,
        kind=data.kind,
        images=len(source),
        classes=len(source.class_names),
        short_side=int(np.median(sides)),
        gray=all(grays),
        decode_seconds=float(np.mean(seconds)),
    )


def this_machine() -> Machine:
    """Return cores and GPUs of this machine, without TensorFlow; a machine without NVIDIA's library has no GPU.

    CUDA_VISIBLE_DEVICES limits the number of GPUs.
    """
    cores = available_cores()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return Machine(cores)
    try:
        import pynvml
    except ImportError:
        if not Path("/dev/nvidia0").exists():
            return Machine(cores)
        log.warning("The GPU's memory cannot be queried without nvidia-ml-py; assuming 16 GB.")
        return Machine(cores, gpu_gb=16, gpus=1)
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        if not handles:
            return Machine(cores)
        memory = min(pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in handles)
        major = min(pynvml.nvmlDeviceGetCudaComputeCapability(handle)[0] for handle in handles)
    except pynvml.NVMLError:
        return Machine(cores)
    gpus = len(handles) if visible is None else len(_names_in(visible))
    return Machine(cores, gpu_gb=memory / 1e9, gpus=gpus, bfloat16=major >= 8)


def visible_gpus() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES gives to GPUs, by default the numbers of all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(map(str, range(this_machine().gpus))) if visible is None else _names_in(visible)


def _names_in(visible: str) -> list[str]:
    return [name for name in visible.split(",") if name not in ("", "-1")]
