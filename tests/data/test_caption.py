"""Text that is cut to a width."""

import pytest
from PIL import ImageFont

from swav_tf.data.folders import ImageFolder
from swav_tf.data.pictures import image_sheet, shortened


@pytest.fixture
def font():
    return ImageFont.load_default(12)


def test_the_end_that_fits_is_kept(font):
    text, width = "n01440764/n01440764_10026.JPEG", 90
    cut = shortened(text, font, width)
    assert cut.startswith("...")
    assert text.endswith(cut[3:])
    assert font.getlength(cut) <= width
    longer = "..." + text[-len(cut) + 2 :]
    assert font.getlength(longer) > width  # no more of it would fit
    assert shortened("a.jpg", font, width) == "a.jpg"


# Bug caught: letters taken off an empty text, for ever, where not even the dots fit.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("width", [8, 0, -20])
def test_a_width_below_that_of_the_dots(font, width):
    assert shortened("n01440764_10026.JPEG", font, width) == "..."


# Bug caught: the same, of a whole sheet.
@pytest.mark.timeout(60)
def test_a_sheet_of_very_small_pictures(folder):
    sheet = image_sheet(ImageFolder(folder), count=2, side=8)
    assert sheet.width == 12 + 2 * (8 + 12)


# Bug caught: bytes that are no text, as Python keeps them, end the drawing.
def test_characters_that_cannot_be_drawn(font):
    assert shortened("caf\udce9.jpg", font, 200) == "caf?.jpg"
