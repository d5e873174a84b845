"""Evaluation views of a source's images, decoded in threads."""

import threading
import time

import numpy as np
import pytest

from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import DEFAULT
from swav_tf.data.views import view_batches, view_images
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import EvaluationView

VIEW = EvaluationView(resize=8, crop=8)


class SlowSource:
    """Gray images whose level is their number; later ones are read faster. Image 7 is unreadable."""

    class_names = ()
    decoding = DEFAULT

    def __init__(self, count):
        self.count, self.reads, self.lock = count, 0, threading.Lock()

    def __len__(self):
        return self.count

    def read(self, index):
        time.sleep(0.004 * (index % 3 == 0))
        with self.lock:
            self.reads += 1
        return b"no image" if index == 7 else np.full((8, 8, 3), index, np.uint8)

    def label(self, index):
        return index * 2

    def image_name(self, index):
        return f"n{index}"


# Bugs caught: views in the order in which threads finish, a label or name of another image, an unreadable one that
# shifts the others.
@pytest.mark.parametrize("threads", [1, 4])
def test_views_are_in_order(threads):
    views = list(view_images(SlowSource(30), range(30), VIEW, threads=threads, ahead=5))
    assert [v.index for v in views] == list(range(30))
    good = [(v.name, v.label, int(v.view[0, 0, 0])) for v in views if v.view is not None]
    assert good == [(f"n{i}", 2 * i, i) for i in range(30) if i != 7]
    assert "not one of the formats" in views[7].reason


# Bug caught: all images in memory while the model still computes the first batch.
def test_decoding_does_not_run_away():
    source = SlowSource(200)
    views = view_images(source, range(200), VIEW, threads=2, ahead=10)
    next(views)
    time.sleep(0.2)
    assert source.reads <= 12
    views.close()
    assert source.reads <= 12  # and stops with its consumer


# Bugs caught: an unreadable image that shifts the others into other batches; labels that no longer match the features.
def test_batches_depend_on_the_numbers_alone(tmp_path):
    unreadable = BadImages(images=30, max_share=0.1)
    batches = view_batches(SlowSource(30), range(30), VIEW, 8, unreadable=unreadable.bad)
    assert [[image.index for image in batch] for batch in batches] == [
        [*range(7)],
        [*range(8, 16)],
        [*range(16, 24)],
        [*range(24, 30)],
    ]
    unreadable.write_list(tmp_path / "bad.csv")
    assert [line.split(",")[0] for line in (tmp_path / "bad.csv").read_text().splitlines()] == ["name", "n7"]
    with pytest.raises(DataError, match="n7 cannot be read: not one of the formats"):
        list(view_batches(SlowSource(30), range(30), VIEW, 8))
