"""Images in a file system of TensorFlow's: `ram://`, which is one as `gs://` and `s3://` are, but needs no network."""

import importlib
import os
import sys

import numpy as np
import pytest

from swav_tf.data import shard_index, storage
from swav_tf.data.bad_images import BadImages
from swav_tf.data.check import check_data
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.loader import training_batches
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import fingerprint, guess_kind, open_source
from swav_tf.data.tfrecord import open_shards
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.pretraining import Data

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def places(tmp_path_factory, small_photo, encoded):
    """The same class folders, shards with and shards without index, here and in TensorFlow's memory."""
    root = tmp_path_factory.mktemp("places")
    for i in range(16):
        path = root / "images" / ("b", "a a", "c/deep")[i % 3] / f"{i:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = small_photo.copy()
        pixels[:, :60] = 10 * i
        path.write_bytes(encoded(pixels))
    (root / "images" / "a a" / "._hidden.JPEG").write_bytes(b"x")
    (root / "images" / ".cache").mkdir()
    (root / "images" / ".cache" / "y.JPEG").write_bytes(b"x")
    write_shards(ClassFolders(root / "images"), root / "shards", shards=3)
    (root / "foreign").mkdir()
    for path in (root / "shards").glob("*.tfrecord"):
        (root / "foreign" / path.name).write_bytes(path.read_bytes())
    for folder, _, names in os.walk(root):
        for name in names:
            there = "ram://places" + os.path.join(folder, name).removeprefix(str(root))
            tf.io.gfile.makedirs(there.rpartition("/")[0])
            with tf.io.gfile.GFile(there, "wb") as file, open(os.path.join(folder, name), "rb") as here:
                file.write(here.read())
    return str(root), "ram://places"


# Bugs caught: another order than of the same folder here, hidden files, a name cut wrongly, a range from the start.
@pytest.mark.parametrize("kind", ["class_folders", "images", "shards", "foreign"])
def test_the_same_images_in_the_same_order(places, monkeypatch, kind):
    monkeypatch.setattr(shard_index, "_REMOTE_BLOCK", 5000)  # less than the longest shard
    here, there = (
        open_source(
            Data(kind=kind, path=f"{root}/images")
            if kind in ("class_folders", "images")
            else Data(kind="tfrecord", path=f"{root}/{kind}")
        )
        for root in places
    )
    assert fingerprint(there) == fingerprint(here)
    assert there.class_names == here.class_names
    for i in (15, 0, 7, 8):
        assert there.read(i) == here.read(i)
        assert there.label(i) == here.label(i)
    report = check_data(there)
    assert (report.images, report.corrupt) == (16, {})


def test_patterns_and_guesses(places):
    for root in places:
        assert len(open_shards(f"{root}/foreign/*-0000[01]-of-*")) == 10
        assert guess_kind(f"{root}/foreign") == guess_kind(f"{root}/shards/images-*") == "tfrecord"
        assert guess_kind(f"{root}/images") == "class_folders"
        assert guess_kind(f"{root}/images/a a") == "images"


def test_crops_of_a_remote_source_are_those_of_a_local_one(places, recipe):
    crops = [
        next(iter(training_batches(
            recipe(path), open_shards(f"{path}/shards"), steps_per_epoch=2, start_step=1, total_steps=2, workers=1,
            worker=0, replica_batch_size=8, bad_images=BadImages(None, images=16, max_share=0),
        )))
        for path in places
    ]  # fmt: skip
    for here, there in zip(*crops, strict=True):
        np.testing.assert_array_equal(here, there)


def test_remote_images_are_packed_here(places, tmp_path):
    write_shards(ClassFolders("ram://places/images"), tmp_path / "out", shards=3)
    for path in (tmp_path / "out").glob("*.tfrecord"):
        assert path.read_bytes() == storage.read_file(f"{places[0]}/shards/{path.name}")
    with pytest.raises(UsageError, match="written on this machine"):
        write_shards(ClassFolders("ram://places/images"), "ram://out")


def test_what_is_wrong_is_told(places, monkeypatch):
    for path in ("s3://bucket/train", "az://bucket/train"):
        with pytest.raises(
            DataError, match=r"must have a file system for (s3|az)://.*pip install tensorflow-io"
        ):
            open_source(Data(kind="tfrecord", path=path))
    with pytest.raises(DataError, match="does not"):
        ImageFolder("ram://nowhere")
    source = ImageFolder("ram://places/images")
    tf.io.gfile.remove(f"ram://places/images/{source.image_name(3)}")
    with pytest.raises(OSError, match="ram://"):
        source.read(3)

    def no_access(path):
        raise PermissionError(13, "no access", path)

    monkeypatch.setattr(storage, "is_folder", no_access)
    for kind in ("class_folders", "tfrecord"):
        with pytest.raises(DataError, match=r"must be within reach: .*no access"):
            open_source(Data(kind=kind, path="ram://places/images"))


def test_a_plug_in_is_imported_when_its_scheme_is_asked_for(places, monkeypatch, tmp_path):
    # A scheme that no command line could ever make known.
    schemes, monkey = ["ram"], tmp_path / "tensorflow_io.py"
    monkeypatch.setattr(storage, "_schemes", lambda: schemes)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow_io", raising=False)
    monkey.write_text("raise RuntimeError('built for TensorFlow 1')")
    with pytest.raises(DataError, match="cannot be imported: RuntimeError: built for TensorFlow 1"):
        storage.local_or_remote("s3://bucket/train")
    monkey.write_text("from swav_tf.data import storage; storage._schemes().append('s3')")
    monkeypatch.delitem(sys.modules, "tensorflow_io", raising=False)
    importlib.invalidate_caches()
    assert storage.local_or_remote("s3://bucket/train") == "s3://bucket/train"
    sys.modules.pop("tensorflow_io")
