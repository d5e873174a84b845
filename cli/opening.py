"""Opening what the options name: models, and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.quiet import load_tensorflow_quietly

if TYPE_CHECKING:
    from evaluate.backends.backend import Backend
    from evaluate.images import ImageSet
    from swav_tf.data.sources import ImageSource


def open_model(model: str, provider: str | None = None) -> Backend:
    """The model, TensorFlow loaded quietly if it is one that needs it."""
    from evaluate import backends

    if backends.is_run_folder(model):
        load_tensorflow_quietly()
    return backends.open_model(model, provider=provider)


def open_data(runner: Backend, data: str | None, kind: str | None, split: str | None) -> ImageSet:
    """The images that the options name."""
    from evaluate.images import open_images

    return open_images(data, like=runner.data, kind=kind, split=split)


def open_source_of(data: str, kind: str | None, split: str) -> tuple[ImageSource, str]:
    """The images that DATA names where there is no model, and the kind that they were read as."""
    from swav_tf.data.sources import guess_kind, open_source
    from swav_tf.recipe.pretraining import Data

    kind = kind or guess_kind(data)
    path = None if kind == "digits" else data
    return open_source(Data.model_validate({"kind": kind, "path": path, "split": split})), kind
