"""TFRecord files as TensorFlow writes them, read by position without it."""

import shutil

import numpy as np
import pytest

from swav_tf.data.records import MalformedExample, decode_example
from swav_tf.data.sources import open_source
from swav_tf.data.tfrecord import TFRecordSource
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import Data

tf = pytest.importorskip("tensorflow")


def example(**features):
    """Serialize lists of bytes, integers or floats; `__` in a name is a slash."""
    lists = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    message = tf.train.Example()
    for name, values in features.items():
        feature = message.features.feature[name.replace("__", "/")]
        if values:
            getattr(feature, lists[type(values[0])]).value.extend(values)
    return message.SerializeToString(deterministic=True)


def write(path, records, **options):
    with tf.io.TFRecordWriter(str(path), **options) as writer:
        for record in records:
            writer.write(record)


def opened(path, **settings):
    return open_source(Data(kind="tfrecord", path=str(path), **settings))


# Bugs caught: lists of several values, floats between them, negative integers, integers one per field.
def test_examples():
    features = {
        "many": [b"a", b"bc", b""], "numbers": [1, -2, 300, 2**62], "floats": [1.5, 2.0], "none": [],
        "image__encoded": [b"\0\xff" * 200],
    }  # fmt: skip
    expected = {name.replace("__", "/"): values for name, values in features.items()} | {"floats": []}
    assert decode_example(example(**features)) == expected
    unpacked = b"\x0a\x0e\x0a\x0c\x0a\x01n\x12\x07\x1a\x05\x08\x05\x08\xac\x02"
    by_tensorflow = tf.train.Example.FromString(unpacked).features.feature["n"].int64_list.value
    assert decode_example(unpacked) == {"n": list(by_tensorflow)} == {"n": [5, 300]}


# Bugs caught: an IndexError, a loop without end, memory for a length that is only claimed.
def test_hostile_bytes_are_refused_or_read():
    intact = example(image__encoded=[b"\0\xff" * 200], image__class__label=[7], negative=[-5], empty=[b""])
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(intact[: random.integers(1, len(intact) + 1)])
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        try:
            decode_example(bytes(data))
        except MalformedExample:
            refused += 1
    assert refused > 1000


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        records = [
            example(image__encoded=[b"image %d" % i * (i + 1)], image__class__label=[i])
            for i in range(4 * shard, 4 * shard + 4)
        ]
        write(tmp_path / f"train-{shard:05d}-of-00003", records)
    return tmp_path


def test_images_are_numbered_through_all_shards(shards):
    # Offsets that are right for the first shard or the first record only.
    source = opened(shards)
    assert len(source) == 12
    for i in (11, 0, 5, 4, 3):
        assert (source.read(i), source.label(i)) == (b"image %d" % i * (i + 1), i)
    assert source.image_name(4) == "train-00001-of-00003@12"
    assert len(opened(shards / "train-0000[12]*")) == 8


# Bug caught: training on the validation images, which some writers of ImageNet put into the same folder.
def test_a_folder_of_two_splits_is_refused(shards):
    shutil.copy(shards / "train-00000-of-00003", shards / "validation-00000-of-00001")
    with pytest.raises(
        DataError, match=r"train and validation\. Use a pattern for one split: .*/\*train\*, or"
    ):
        opened(shards)
    assert (len(opened(shards / "*train*")), len(opened(shards / "*"))) == (12, 16)


# Bug caught: twelve images lost because of the first one.
def test_a_damaged_first_record_is_lost_alone(shards):
    shard = shards / "train-00000-of-00003"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    source = opened(shards)
    with pytest.raises(OSError, match="checksum is wrong"):
        source.read(0)
    assert [source.label(i) for i in range(1, 12)] == list(range(1, 12))


@pytest.mark.parametrize("cut", [1, 4, 10, 60])
def test_a_truncated_shard_is_refused(shards, cut):
    # The last records silently missing.
    shard = shards / "train-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"train-00001-of-00003 is truncated"):
        opened(shards)


def test_files_of_another_kind_are_refused(tmp_path, shards):
    with pytest.raises(DataError, match="image/class/label, image/encoded"):
        opened(shards, image_key="picture")
    path = tmp_path / "other" / "a.tfrecord"
    path.parent.mkdir()
    for content, message in ((b"these are no records at all", "not a TFRecord file"), (b"", "no record")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            opened(path.parent)
    write(path, [example(a=[1])], options="GZIP")
    with pytest.raises(DataError, match="gzip"):
        opened(path.parent)


def test_a_record_without_its_image_is_one_bad_image(tmp_path):
    # An exception of protobuf's, or a KeyError, that ends the run.
    write(tmp_path / "a.tfrecord", [example(image__encoded=[b"x"]), example(other=[1]), b"\xff\xff\xff"])
    source = TFRecordSource([tmp_path / "a.tfrecord"], image_key="image/encoded", label_key="label")
    assert source.label(0) == -1
    for index in (1, 2):
        with pytest.raises(OSError, match=r"holds 0 images|not a tf\.train\.Example"):
            source.read(index)
