"""Contact sheets: they show the crops of a run, in proportion, and survive bad files and narrow captions."""

import numpy as np
import pytest
from PIL import ImageFont

from swav_tf.data.folders import ImageFolder
from swav_tf.data.multicrop import MultiCrop
from swav_tf.data.order import epoch_order
from swav_tf.data.pictures import contact_sheet, shortened
from swav_tf.data.sources import read_image
from swav_tf.plumbing.errors import DataError


def contains(sheet, view):
    """Return whether the picture contains these pixels somewhere."""
    side = view.shape[0]
    corners = np.argwhere((sheet[: -side + 1, : -side + 1] == view[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + side, x : x + side], view) for y, x in corners)


def test_it_shows_the_crops_of_a_run(folder, recipe):
    recipe, source = recipe(folder), ImageFolder(folder)
    sheet = np.asarray(contact_sheet(source, recipe, rows=3, epoch=4, height=32))
    multicrop = MultiCrop(recipe.crops, recipe.augment)
    for index in epoch_order(24, seed=31, epoch=4)[:3].tolist():
        for group in multicrop(read_image(source, index), seed=31, epoch=4, index=index):
            assert all(contains(sheet, view) for view in group)


def test_unreadable_images_are_left_out(folder, recipe):
    for i in range(20):
        (folder / f"{i:02d}.jpg").write_bytes(b"no image")
    recipe, source = recipe(folder), ImageFolder(folder)
    assert contact_sheet(source, recipe, rows=9).size == contact_sheet(source, recipe, rows=4).size


class Broken:
    """A million unreadable images; it counts reads."""

    class_names = ()
    reads = 0

    def __len__(self):
        return 1_000_000

    def read(self, index):
        self.reads += 1
        raise OSError("input/output error")

    def image_name(self, index):
        return f"{index}.jpg"


# Bug caught: a run reads all of a broken data set for a picture before it reports anything.
def test_it_gives_up_if_all_images_are_broken(folder, recipe):
    source = Broken()
    with pytest.raises(DataError, match=r"1,000,000 images; none of the 100.*jpg: input/output error"):
        contact_sheet(source, recipe(folder), rows=4)
    assert source.reads == 100


# Bugs caught: an endless loop where not even the dots fit; bytes that are not text end the drawing.
@pytest.mark.timeout(60)
def test_captions_keep_the_end_that_fits():
    font = ImageFont.load_default(12)
    text, width = "n01440764/n01440764_10026.JPEG", 90
    cut = shortened(text, font, width)
    assert cut.startswith("...")
    assert text.endswith(cut[3:])
    assert font.getlength(cut) <= width < font.getlength("..." + text[-len(cut) + 2 :])
    assert shortened("a.jpg", font, width) == "a.jpg"
    assert shortened("caf\udce9.jpg", font, 200) == "caf?.jpg"
    for width in (8, 0, -20):
        assert shortened(text, font, width) == "..."
