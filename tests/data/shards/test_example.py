"""Our tf.train.Example and TFRecord framing against TensorFlow's own."""

import numpy as np
import pytest

from swav_tf.data.shard_index import MalformedExample, decode_example, encode_example, framed, record_table

tf = pytest.importorskip("tensorflow")

FEATURES = {
    "image/encoded": b"\0\xff" * 200,
    "image/class/label": 7,
    "negative": -5,
    "large": 2**62,
    "empty": b"",
}


def test_written_as_tensorflow_writes(tmp_path):
    example = tf.train.Example.FromString(encode_example(FEATURES))
    assert example.SerializeToString(deterministic=True) == encode_example(FEATURES)
    assert {
        name: list(f.bytes_list.value or f.int64_list.value) for name, f in example.features.feature.items()
    } == {name: [value] for name, value in FEATURES.items()}
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for data in (b"", encode_example(FEATURES)):
            writer.write(data)
    ours = b"".join(framed(b"") + framed(encode_example(FEATURES)))
    assert (tmp_path / "theirs").read_bytes() == ours
    assert len(record_table(str(tmp_path / "theirs"))) == 2


def test_what_tensorflow_writes_is_read():
    # Lists of several values, floats beside them, integers one a field instead of packed.
    feature = tf.train.Feature
    example = tf.train.Example()
    example.features.feature["many"].CopyFrom(feature(bytes_list=tf.train.BytesList(value=[b"a", b"bc"])))
    example.features.feature["numbers"].CopyFrom(feature(int64_list=tf.train.Int64List(value=[1, -2, 300])))
    example.features.feature["floats"].CopyFrom(feature(float_list=tf.train.FloatList(value=[1.5, 2])))
    example.features.feature["none"].CopyFrom(feature())
    found = {"many": [b"a", b"bc"], "numbers": [1, -2, 300], "floats": [], "none": []}
    assert decode_example(example.SerializeToString()) == found
    unpacked = b"\x0a\x0f\x0a\x0d\x0a\x01n\x12\x08\x1a\x06\x08\x05\x08\xac\x02\x10"[:-1]
    unpacked = (
        unpacked[:1] + bytes([len(unpacked) - 2]) + unpacked[2:3] + bytes([len(unpacked) - 4]) + unpacked[4:]
    )
    unpacked = unpacked.replace(b"\x12\x08\x1a\x06", b"\x12\x07\x1a\x05")
    theirs = tf.train.Example.FromString(unpacked).features.feature["n"].int64_list.value
    assert decode_example(unpacked) == {"n": list(theirs)} == {"n": [5, 300]}


def test_hostile_bytes_are_refused_or_read_but_never_worse():
    # An IndexError, a loop without end, memory for a length that is only claimed.
    whole = encode_example(FEATURES)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        try:
            decode_example(bytes(data))
        except MalformedExample:
            refused += 1
    assert refused > 1000
