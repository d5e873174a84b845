"""The HTML page of a pretraining run."""

import json
import re

import pytest

from evaluate.run_report import Run, draw_pictures, write_run_report
from swav_tf.recipe.files import load_recipe, save_recipe
from tests.evaluate.models import NumpyBackend, class_folders, make_class_folders

LINES = [
    {"kind": "knn_baselines", "step": 0, "epoch": 0, "knn_top1_initial": 0.25, "knn_top1_pixels": None},
    {"kind": "step", "step": 10, "epoch": 0, "loss": None, "learning_rate": 0.1},
    {"kind": "step", "step": 20, "epoch": 0, "loss": 3.5, "learning_rate": 0.2},
    {"kind": "epoch", "step": 22, "epoch": 0, "loss": 3.25, "prototypes_used": 41},
    {"kind": "views", "step": 22, "epoch": 0, "view_retrieval": 0.5},
    {"kind": "knn", "step": 22, "epoch": 0, "knn_top1": 0.75},
]


@pytest.fixture
def folder(tmp_path):
    """A run that has not ended, whose last line is being written."""
    folder = tmp_path / "a run"
    folder.mkdir()
    save_recipe(load_recipe("demo"), folder / "config.yaml")
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "step", "st')
    return folder


def page_of(folder, pictures=None, **options):
    write_run_report(folder / "report.html", Run.read(folder), pictures, **options)
    return (folder / "report.html").read_text(encoding="utf-8")


# Bugs caught: a page that fails for a run that is not complete, or without its images; figures that are left out.
def test_a_run_without_its_images(folder):
    page = page_of(folder, missing="No <b>images</b>.")
    for text in (
        "not complete, step 22",
        ">3.25<",
        ">75.0 %<",
        ">50.0 %<",
        ">41 of 50<",
        "the initial weights 25.0\u00a0%",  # on one line
    ):
        assert text in page
    assert "are not shown. No &lt;b&gt;images&lt;/b&gt;." in page
    assert [
        page.count(f"<h3>{name}</h3>")
        for name in ("Loss", "k-NN accuracy", "Learning rate", "Prototypes used")
    ] == [1] * 4
    assert page.count("<svg") == 5
    assert "#0f0e" not in page
    assert "Collapsed attempts" not in page


# Bugs caught: a page that loads something from the network, names that are taken for HTML, an image that is its own
# neighbor, a rescue or unreadable images that the page hides.
def test_all_of_a_run(folder, tmp_path):
    images = class_folders(
        make_class_folders(tmp_path / "images", classes=("<script>alert(1)<", "b"), each=4)
    )
    attempt = {
        "step": 30,
        "loss": 3.9,
        "ln_k": 3.912,
        "projection_spread": 0.001,
        "overrides": ["method.epsilon=0.03"],
    }
    (folder / "attempts.json").write_text(json.dumps([attempt]))
    (folder / "bad_images.txt").write_text("<i>.png\tempty\n")
    pictures = draw_pictures(load_recipe("demo"), NumpyBackend(), images, limit=6)
    page = page_of(folder, pictures)
    assert "<script" not in page
    assert "<i>" not in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {address.partition(":")[0] for address in addresses if not address.startswith("#")} == {"data"}
    assert not re.search(r"url\((?!#)|@import|http", re.sub(r'src="[^"]*"', "", page))
    for text in ("method.epsilon=0.03", "&lt;i&gt;.png", "among 6 images", "PCA", "peak_learning_rate"):
        assert text in page
    assert len(pictures.neighbors) == 6
    for row in pictures.neighbors:
        (_, _, query), *near = row["pictures"]
        assert len({title for *_, title in near}) == 5
        assert query not in [title for *_, title in near]
        cosines = [float(caption) for _, caption, _ in near]
        assert cosines == sorted(cosines, reverse=True)
