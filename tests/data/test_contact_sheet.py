"""The contact sheet: that it shows the crops of a run, in proportion, and survives a bad file."""

import numpy as np
import pytest

from swav_tf.data.folders import ImageFolder
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.order import epoch_order
from swav_tf.data.pictures import contact_sheet
from swav_tf.data.sources import read_image
from swav_tf.plumbing.errors import DataError


def holds(sheet, view):
    """Whether the picture holds these pixels somewhere."""
    side = view.shape[0]
    corners = np.argwhere((sheet[: -side + 1, : -side + 1] == view[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + side, x : x + side], view) for y, x in corners)


def test_it_shows_the_crops_that_a_run_takes(folder, recipe):
    # A sheet from draws of its own says nothing about the run.
    recipe, source = recipe(folder), ImageFolder(folder)
    sheet = np.asarray(contact_sheet(source, recipe, rows=3, epoch=4, height=32))
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    for index in epoch_order(24, seed=31, epoch=4)[:3].tolist():
        image = read_image(source, index)
        for group in multicrop(image, seed=31, epoch=4, index=index):
            assert all(holds(sheet, view) for view in group)


def test_groups_stand_side_by_side_in_proportion(folder, recipe):
    recipe, source = recipe(folder), ImageFolder(folder)
    one, three = (contact_sheet(source, recipe, rows=rows, height=160) for rows in (1, 3))
    assert one.width == three.width
    assert (three.height - one.height) == 2 * (80 + 4 + 80 + 20 + 20)
    # image 4:3, two crops of 160, two columns of 80, gaps
    assert one.width == 20 + 213 + 20 + (2 * 160 + 4) + 20 + (2 * 80 + 4) + 20


def test_unreadable_images_are_left_out(folder, recipe):
    for i in range(20):
        (folder / f"{i:02d}.jpg").write_bytes(b"no image")
    recipe, source = recipe(folder), ImageFolder(folder)
    four = contact_sheet(source, recipe, rows=4)
    assert contact_sheet(source, recipe, rows=9).size == four.size


class Broken:
    """A million images, none of which can be read; it counts how often one was asked for."""

    class_names = ()
    asked = 0

    def __len__(self):
        return 1_000_000

    def read(self, index):
        self.asked += 1
        raise OSError("input/output error")

    def image_name(self, index):
        return f"{index}.jpg"


# Bug caught: a run that reads a whole broken data set for a picture before it says a word.
def test_it_gives_up_where_all_images_are_broken(folder, recipe):
    source = Broken()
    with pytest.raises(DataError, match=r"100 of 1,000,000 images tried.*jpg: input/output error"):
        contact_sheet(source, recipe(folder), rows=4)
    assert source.asked == 100
