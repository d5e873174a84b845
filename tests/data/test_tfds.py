"""TensorFlow Datasets, prepared as ArrayRecord and as TFRecord, read by position."""

import pickle

import numpy as np
import pytest

from swav_tf.data.decode import decode
from swav_tf.data.sources import open_source
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import Data

tfds = pytest.importorskip("tensorflow_datasets")


class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Ten photos in two classes, each of one gray level, so that its pixels identify it."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.full((80, 120, 3), i, np.uint8), "label": i % 2}


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, tmp_path_factory):
    builder = Photos(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format=request.param)
    builder.download_and_prepare()
    return str(builder.data_path)


# Bugs caught: a label of another image; a source that `data.processes` cannot hand to another process.
def test_images_and_labels_by_position(prepared):
    source = open_source(Data(kind="tfds", path=prepared))
    copy = pickle.loads(pickle.dumps(source))
    assert source.class_names == ("cat", "dog")
    levels = []
    for i in range(len(source)):
        pixels = decode(source.read(i))
        assert (pixels.shape, np.ptp(pixels)) == ((80, 120, 3), 0)
        assert source.label(i) == pixels[0, 0, 0] % 2
        assert copy.read(i) == source.read(i)
        levels.append(int(pixels[0, 0, 0]))
    assert sorted(levels) == list(range(10))


def test_splits_and_their_parts(prepared):
    data = Data(kind="tfds", path=prepared, split="train[3:9]", validation_split="test")
    part, complete = open_source(data), open_source(data.model_copy(update={"split": "train"}))
    assert [part.read(i) for i in range(6)] == [complete.read(i) for i in range(3, 9)]
    assert len(part) == 6
    assert len(open_source(data, validation=True)) == 4
    with pytest.raises(DataError, match="test, train"):
        open_source(Data(kind="tfds", path=prepared, split="validation"))


def test_an_unknown_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="no_such_data_set"):
        open_source(Data(kind="tfds", path="no_such_data_set"))
