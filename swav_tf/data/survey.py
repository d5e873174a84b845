"""Look at a folder of images and at this machine, for `-c auto`."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import numpy as np

from swav_tf.data.decode import UndecodableImage
from swav_tf.data.sources import open_source, read_image, recognized
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.nvidia import gpus, lacks_package, visible_gpus
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
    # The declared classes may have no images.
    labels = source.labels() if source.class_names else np.array([-1])
    return ImageFacts(
        path=path,
        kind=data.kind,
        images=len(source),
        classes=len(np.unique(labels[labels >= 0])),
        short_side=int(np.median(sides)),
        gray=all(grays),
        decode_seconds=float(np.mean(seconds)),
    )


def this_machine() -> Machine:
    """Return cores and GPUs of this machine, without TensorFlow; CUDA_VISIBLE_DEVICES limits the number of GPUs."""
    cores, visible, found = available_cores(), visible_gpus(), gpus()
    if not visible or not (found or lacks_package()):
        return Machine(cores)
    known = [gpu.memory_mib for gpu in found if gpu.memory_mib is not None]
    if not known:
        reason = "" if found else " without nvidia-ml-py"
        log.warning(f"The GPU's memory cannot be queried{reason}; assuming 16 GB.")
    memory = min(known) * 2**20 / 1e9 if known else 16
    bfloat16 = bool(found) and all((gpu.capability or 0) >= 8 for gpu in found)
    return Machine(cores, gpu_gb=memory, gpus=len(visible), bfloat16=bfloat16)
