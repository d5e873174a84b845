"""The tally of unreadable images."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from swav_tf.data.bad_images import BadImages
from swav_tf.plumbing.errors import DataError


def test_each_image_is_listed_once_also_after_a_resume(tmp_path):
    # Bug caught: an image met in every epoch fills the list and ends the run.
    path = tmp_path / "bad_images.txt"
    tally = BadImages(path, images=1000, max_share=0.01)
    assert not path.exists()
    for _ in range(20):
        tally.bad("a b/x.jpg", "truncated")
        tally.good()
    resumed = BadImages(path, images=1000, max_share=0.01)
    for name in ("a b/x.jpg", "y.jpg", "caf\udce9.jpg", "\x1b[2J\u2028.jpg"):
        resumed.bad(name, "corrupt\n\tin two lines")
    lines = [
        b"a b/x.jpg\ttruncated",
        b"y.jpg\tcorrupt in two lines",
        rb"caf\xe9.jpg" + b"\tcorrupt in two lines",
        rb"\x1b[2J\u2028.jpg" + b"\tcorrupt in two lines",
    ]
    assert path.read_bytes().splitlines() == lines
    assert BadImages(path, images=1000, max_share=0.01).count == 4


# Bug caught: a run that stops at the next bad image although those before were repaired.
def test_repaired_images_do_not_count(tmp_path):
    path = tmp_path / "bad_images.txt"
    path.write_text("".join(f"{number}.jpg\tcorrupt\n" for number in range(11)))
    resumed = BadImages(path, images=1000, max_share=0.01)
    for number in range(10):
        resumed.bad(f"{number}.jpg", "corrupt")
    with pytest.raises(DataError, match="11 of 1000 images"):
        resumed.bad("10.jpg", "corrupt")


@pytest.mark.parametrize(
    ("images", "max_share", "allowed"),
    [(1000, 0.01, 10), (50, 0.01, 1), (50, 0.0, 0), (50, 0.1, 5), (100, 1.0, 100)],
)
def test_the_run_ends_past_the_allowed_share(images, max_share, allowed):
    # A share of the images met so far, which one bad image in the first batch would exceed.
    tally = BadImages(None, images=images, max_share=max_share)
    for i in range(allowed):
        tally.bad(f"{i}.jpg", "corrupt")
        tally.good()
    with pytest.raises(
        DataError, match=rf"{allowed + 1} of {images} images.*max_bad_share.*last.jpg: corrupt"
    ):
        tally.bad("last.jpg", "corrupt")


def test_a_source_of_which_nothing_can_be_read_ends_the_run_early(tmp_path):
    # 1 % of 1.28 million bad images would take an hour to meet.
    tally = BadImages(tmp_path / "bad.txt", images=1_281_167, max_share=0.01)
    for i in range(50):
        tally.bad(f"{i}.jpg", "corrupt")
    with pytest.raises(DataError, match="51 of the first 51"):
        tally.bad("50.jpg", "corrupt")


def test_threads_share_a_tally(tmp_path):
    # Lines torn or doubled.
    tally = BadImages(tmp_path / "bad.txt", images=10_000, max_share=1.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: tally.bad(f"{i % 200}.jpg", "corrupt"), range(2000)))
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert sorted(lines) == sorted(f"{i}.jpg\tcorrupt" for i in range(200))
