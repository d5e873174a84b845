"""Image data sets of TensorFlow Datasets, with random access."""

from __future__ import annotations

import os
from typing import Any

from swav_tf.data.augment import Image
from swav_tf.data.image_source import ImageSource
from swav_tf.data.tfrecord import TFRecordSource
from swav_tf.plumbing.errors import DataError


def open_tfds(name: str, split: str) -> ImageSource:
    """Open a split, such as `train[:10%]`, of a data set; it is downloaded and prepared as ArrayRecord if necessary.

    `name` is that of the data set, or the folder of a prepared one (ArrayRecord or TFRecord).
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            'data.kind tfds needs tensorflow-datasets, which is not installed: pip install "swav-tf[train]".'
        ) from error
    builder = _prepared(tfds, name)
    image_key = _first_feature(builder, tfds.features.Image)
    label_key = _first_feature(builder, tfds.features.ClassLabel)
    if image_key is None:
        raise DataError(f"{name!r} must have an image feature; it has {builder.info.features}.")
    class_names = tuple(builder.info.features[label_key].names) if label_key is not None else ()
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known = ", ".join(sorted(builder.info.splits))
        raise DataError(f"The split of {name!r} must be one of {known}; received {split!r}.") from error

    if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
        takes = [slice(i.skip, None if i.take < 0 else i.skip + i.take) for i in instructions]
        return TFRecordSource(
            [i.filename for i in instructions],
            image_key=image_key,
            label_key=label_key or "",
            slices=takes,
            class_names=class_names,
        )
    decoders = {image_key: tfds.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise DataError(
            f"{name!r} is prepared as {builder.info.file_format.value}, which has no random access. "
            "Prepare it again as array_record, or set data.kind to tfrecord."
        ) from error
    return TFDSSource(records, f"{name}/{split}", image_key, label_key, class_names)


def _prepared(tfds: Any, name: str) -> Any:
    folder = os.path.expanduser(name)
    try:
        if os.path.isdir(folder):
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(name)
        if not builder.is_prepared():
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        return builder
    except Exception as error:  # TFDS raises dozens of kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.path must name a data set that TFDS can prepare. {name!r} failed: {reason}."
        ) from error


def _first_feature(builder: Any, kind: type) -> str | None:
    return next((key for key, feature in builder.info.features.items() if isinstance(feature, kind)), None)


class TFDSSource(ImageSource):
    """The records of a TFDS data source."""

    def __init__(
        self, records: Any, name: str, image_key: str, label_key: str | None, class_names: tuple[str, ...]
    ) -> None:
        self.class_names = class_names
        self._records = records
        self._name, self._image_key, self._label_key = name, image_key, label_key

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> bytes | Image:
        """Return the encoded image of record `index`."""
        image: bytes | Image = self._records[index][self._image_key]
        return image

    def label(self, index: int) -> int:
        """Return the class of record `index`, -1 if the data set has no labels."""
        return -1 if self._label_key is None else int(self._records[index][self._label_key])

    def image_name(self, index: int) -> str:
        """Return data set, split and number of record `index`."""
        return f"{self._name}@{index}"
