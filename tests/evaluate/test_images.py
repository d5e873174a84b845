import threading
import time

import numpy as np
import pytest

from evaluate.images import UnreadableImages, batches, open_images, view_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.pretraining import Data, EvaluationView

VIEW = EvaluationView(resize=8, crop=8)


class SlowSource:
    """Gray images whose level is their number; later ones are read faster."""

    class_names = ()

    def __init__(self, count):
        self.count, self.read_so_far, self.lock = count, 0, threading.Lock()

    def __len__(self):
        return self.count

    def read(self, index):
        time.sleep(0.004 * (index % 3 == 0))
        with self.lock:
            self.read_so_far += 1
        return b"no image" if index == 7 else np.full((8, 8, 3), index, np.uint8)

    def label(self, index):
        return index * 2

    def image_name(self, index):
        return f"n{index}"


# Bugs caught: views in the order that threads end in, a label or name of another image, an unreadable one that
# shifts the rest.
@pytest.mark.parametrize("threads", [1, 4])
def test_views_come_in_order(threads):
    views = list(view_images(SlowSource(30), range(30), VIEW, threads=threads, ahead=5))
    assert [v.index for v in views] == list(range(30))
    good = [v for v in views if v.view is not None]
    assert [(v.name, v.label, int(v.view[0, 0, 0])) for v in good] == [
        (f"n{i}", 2 * i, i) for i in range(30) if i != 7
    ]
    assert "not one of the formats" in views[7].reason


# Bug caught: all images decoded into memory while the model is still at the first batch.
def test_decoding_does_not_run_away():
    source = SlowSource(200)
    views = view_images(source, range(200), VIEW, threads=2, ahead=10)
    next(views)
    time.sleep(0.2)
    assert source.read_so_far <= 12
    views.close()
    assert source.read_so_far <= 12  # and stops when nobody listens


# Bug caught: a batch that is short because one of its images was unreadable.
def test_batches_are_full(tmp_path):
    unreadable = UnreadableImages(30, 0.1, tmp_path / "bad.csv")
    sizes = [len(b) for b in batches(view_images(SlowSource(30), range(30), VIEW), 8, unreadable)]
    assert sizes == [8, 8, 8, 5]
    unreadable.write_list()
    assert list(UnreadableImages(30, 0.1, tmp_path / "bad.csv").read_list()) == ["n7"]


# Bug caught: a share of 0 that lets one image pass, a small share of few images that lets none pass.
@pytest.mark.parametrize(("share", "images", "allowed"), [(0, 1000, 0), (0.01, 50, 1), (0.01, 1000, 10)])
def test_allowed_share(tmp_path, share, images, allowed):
    assert UnreadableImages(images, share, tmp_path / "bad.csv").allowed == allowed


# Bugs caught: a model's images taken for others, a split or path of the digits that is carried to a folder.
def test_data_is_read_as_the_models_unless_said(tmp_path, folders):
    digits = Data(kind="digits", split="test")
    assert len(open_images(None, like=digits).source) == 360
    assert len(open_images("digits", like=digits, split="train").source) == 1437
    assert len(open_images("digits", like=Data(path="x")).source) == 1437
    like = Data(path=str(folders))
    assert open_images(None, like=like).source.label(19) == 1
    opened = open_images(str(folders), like=digits, kind="images")
    assert (opened.source.label(19), opened.settings.path) == (-1, str(folders))
    facts = opened.facts()
    assert (facts["kind"], facts["images"], facts["split"]) == ("images", 20, None)
    assert facts["names_sha256"] == open_images(None, like=like).facts()["names_sha256"]


# Bug caught: images other than those that were asked for, without a word.
@pytest.mark.parametrize(
    ("data", "like", "options", "error", "told"),
    [
        ("photos", Data(kind="digits"), {}, UsageError, "trained on the bundled digits.*--kind"),
        ("x", Data(), {"kind": "folder"}, UsageError, "--kind must be one of class_folders"),
        (None, Data(), {}, UsageError, "DATA must say where"),
        (None, Data(path="x"), {"kind": "images"}, UsageError, "DATA must say where"),
        ("x", Data(), {"split": "test"}, UsageError, "--split belongs to"),
        ("nowhere", Data(), {}, DataError, "nowhere does not"),
        ("digits", Data(), {"split": "val"}, DataError, "have the splits train and test"),
    ],
)
def test_wrong_data(data, like, options, error, told):
    with pytest.raises(error, match=told):
        open_images(data, like=like, **options)


# Bug caught: an empty folder that gives an empty feature file.
def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        open_images(str(tmp_path), like=Data(kind="images"))


# Bug caught: names that are no UTF-8, or hold a line break, and break the files that they are written to.
def test_names_are_printable():
    assert printable("a\udcff.jpg") == "a\\xff.jpg"
    assert printable("a\nb") == "a\\nb"
    assert printable("\x1b[31mred") == "\\x1b[31mred"
