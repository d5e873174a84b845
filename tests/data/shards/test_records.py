"""TFRecord shards and TensorFlow Datasets, written here by TensorFlow and read by number."""

import pickle

import numpy as np
import pytest

from swav_tf.data.sources import open_source
from swav_tf.data.tfrecord import TFRecordSource
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.pretraining import Data

tf = pytest.importorskip("tensorflow")


def example(**features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    named = {key.replace("__", "/"): feature(value) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def write(path, records, **options):
    with tf.io.TFRecordWriter(str(path), **options) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        records = [
            example(image__encoded=b"image %d" % i * (i + 1), image__class__label=i)
            for i in range(4 * shard, 4 * shard + 4)
        ]
        write(tmp_path / f"train-{shard:05d}-of-00003", records)
    return tmp_path


def test_records_are_read_by_number_through_all_shards(shards):
    # Offsets that are right for the first shard or the first record only.
    source = open_source(Data(kind="tfrecord", path=str(shards)))
    assert len(source) == 12
    for i in (11, 0, 5, 4, 3):
        assert source.read(i) == b"image %d" % i * (i + 1)
        assert source.label(i) == i
    assert source.image_name(4) == "train-00001-of-00003@12"


def test_shards_by_pattern(shards):
    assert len(open_source(Data(kind="tfrecord", path=str(shards / "train-0000[12]*")))) == 8


@pytest.mark.parametrize("cut", [1, 4, 10, 60])
def test_a_truncated_shard_is_refused(shards, cut):
    # The last records silently missing.
    shard = shards / "train-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"train-00001-of-00003 is truncated"):
        open_source(Data(kind="tfrecord", path=str(shards)))


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"these are no records at all")
    with pytest.raises(DataError, match="not a TFRecord file"):
        open_source(Data(kind="tfrecord", path=str(tmp_path)))
    write(tmp_path / "a.tfrecord", [example(a=1)], options="GZIP")
    with pytest.raises(DataError, match="gzip"):
        open_source(Data(kind="tfrecord", path=str(tmp_path)))
    (tmp_path / "a.tfrecord").write_bytes(b"")
    with pytest.raises(DataError, match="no record"):
        open_source(Data(kind="tfrecord", path=str(tmp_path)))


def test_a_wrong_image_key_lists_those_there_are(shards):
    with pytest.raises(DataError, match="image/class/label, image/encoded"):
        open_source(Data(kind="tfrecord", path=str(shards), image_key="picture"))


def test_records_without_label(tmp_path):
    write(tmp_path / "a.tfrecord", [example(image__encoded=b"x")])
    assert open_source(Data(kind="tfrecord", path=str(tmp_path))).label(0) == -1


def test_a_record_that_lost_its_image_is_one_bad_image(tmp_path):
    # An exception of protobuf's, or a KeyError, that ends the run.
    write(tmp_path / "a.tfrecord", [example(image__encoded=b"x"), example(other=1), b"\xff\xff\xff"])
    source = TFRecordSource([tmp_path / "a.tfrecord"], image_key="image/encoded", label_key="")
    for index in (1, 2):
        with pytest.raises(OSError, match=r"holds 0 images|not a tf\.train\.Example"):
            source.read(index)


class TestTFDS:
    @pytest.fixture(scope="class", params=["array_record", "tfrecord"])
    def prepared(self, request, tmp_path_factory, small_photo):
        """A data set of ten photos in two classes, prepared on disk."""
        tfds = pytest.importorskip("tensorflow_datasets")

        class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
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
                    yield i, {"image": np.full_like(small_photo, i), "label": i % 2}

        builder = Photos(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format=request.param)
        builder.download_and_prepare()
        return str(builder.data_path)

    def test_images_and_labels_by_number(self, prepared):
        # A label of another image; images that arrive in TFDS' own shuffled order are told by their pixels.
        from swav_tf.data.decode import decode

        source = open_source(Data(kind="tfds", path=prepared))
        assert source.class_names == ("cat", "dog")
        levels = []
        for i in range(len(source)):
            pixels = decode(source.read(i))
            assert pixels.shape == (80, 120, 3)
            assert np.ptp(pixels) == 0
            assert source.label(i) == pixels[0, 0, 0] % 2
            levels.append(int(pixels[0, 0, 0]))
        assert sorted(levels) == list(range(10))

    def test_splits_and_their_parts(self, prepared):
        data = Data(kind="tfds", path=prepared, split="train[3:9]", validation_split="test")
        part, whole = open_source(data), open_source(data.model_copy(update={"split": "train"}))
        assert [part.read(i) for i in range(6)] == [whole.read(i) for i in range(3, 9)]
        assert len(part) == 6
        assert len(open_source(data, validation=True)) == 4

    # Bug caught: a source that `data.processes` cannot hand to another process.
    def test_the_source_travels(self, prepared):
        source = open_source(Data(kind="tfds", path=prepared))
        there = pickle.loads(pickle.dumps(source))
        assert [there.read(i) for i in range(10)] == [source.read(i) for i in range(10)]

    def test_an_unknown_split_lists_those_there_are(self, prepared):
        with pytest.raises(DataError, match="test, train"):
            open_source(Data(kind="tfds", path=prepared, split="validation"))


def test_an_unknown_tfds_name(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="no_such_data_set"):
        open_source(Data(kind="tfds", path="no_such_data_set"))
