import json

import pytest

from evaluate.images import open_images
from swav_tf.data.sources import contents_sha256, fingerprint
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.data import Data


# Bugs caught: a split or path of the digits that is applied to a folder, images identified otherwise than by a run.
def test_defaults_are_the_models(tmp_path, folders):
    digits, like = Data(kind="digits", split="test"), Data(path=str(folders))
    assert len(open_images(None, like=digits).source) == 360
    assert len(open_images("digits", like=digits, split="train").source) == 1437
    assert len(open_images("digits", like=Data(path="x")).source) == 1437
    assert open_images(None, like=like).source.label(19) == 1
    opened = open_images(str(folders), like=digits, kind="images")
    assert (opened.source.label(19), opened.settings.path) == (-1, str(folders))
    facts = {"kind": "images", "path": str(folders), "split": None, **fingerprint(opened.source)}
    facts["contents_sha256"] = contents_sha256(opened.source)
    assert (opened.facts(), facts["images"]) == (facts, 20)


# Bug caught: different images than requested, silently.
@pytest.mark.parametrize(
    ("data", "like", "options", "error", "message"),
    [
        ("x", Data(), {"kind": "folder"}, UsageError, "--kind must be one of auto, class_folders"),
        (None, Data(), {}, UsageError, "DATA is required"),
        (None, Data(path="x"), {"kind": "images"}, UsageError, "DATA is required"),
        ("x", Data(), {"split": "test"}, UsageError, "--split applies to"),
        ("nowhere", Data(), {}, DataError, "nowhere"),
        ("digits", Data(), {"split": "val"}, DataError, "train or test"),
    ],
)
def test_wrong_data(data, like, options, error, message):
    with pytest.raises(error, match=message):
        open_images(data, like=like, **options)


# Bug caught: labels of a list that are lost, or those of the model's images given to others.
def test_labels_of_a_list(tmp_path, folders):
    names = [open_images(str(folders), like=Data()).source.image_name(i) for i in range(20)]
    (tmp_path / "list.json").write_text(json.dumps(dict.fromkeys(names, "x")))
    labels = str(tmp_path / "list.json")
    opened = open_images(str(folders), like=Data(), labels=labels)
    assert (opened.source.class_names, opened.facts()["labels"]) == (("x",), labels)
    trained = Data(kind="images", path=str(folders), labels=labels)
    assert open_images(None, like=trained).source.class_names == ("x",)
    assert open_images(str(folders), like=trained).source.class_names != ("x",)
