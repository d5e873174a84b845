import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from evaluate import search
from evaluate.feature_file import FeatureFile, read_feature_file
from evaluate.feature_parts import Part, part_facts, write_part
from evaluate.features import extract_features
from evaluate.images import open_images
from evaluate.knn import knn_accuracies
from evaluate.search import build_index, choose_factory, open_index
from evaluate.similar import images_found, images_of, query_view, similar_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.data import Data
from tests.evaluate.models import NumpyBackend, class_folders

pytest.importorskip("faiss")

ROWS, WIDTH = 3000, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clustered features in two parts."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 30, ROWS)
    features = draw.normal(size=(30, WIDTH))[labels] + 0.5 * draw.normal(size=(ROWS, WIDTH))
    return write_parts(tmp_path_factory.mktemp("parts"), features, labels, parts=2)


def write_parts(folder, features, labels, *, parts=1):
    facts = {
        "model": {"path": "m", "weights_sha256": "a"},
        "view": {},
        "source": {"images": len(features)},
        "class_names": [],
    }
    facts |= {"feature_dim": features.shape[1], "batch_size": 100, "parts": parts}
    (folder / "features.json").write_text(json.dumps(facts))
    for part in (Part(folder, number, parts) for number in range(1, parts + 1)):
        here = part.indices(len(features), 100)
        names, index = [f"n{i}" for i in here], np.array(here)
        write_part(
            part, features[index].astype(np.float32), index, labels[index], names, facts | {"unreadable": 0}
        )
    return folder


# Bug caught: copies that are not counted as neighbors because of other copies, so that all candidates are compared.
def test_copies_are_equally_right(tmp_path):
    features = np.repeat(np.random.default_rng(0).normal(size=(20, WIDTH)), 50, axis=0)
    facts = build_index(write_parts(tmp_path, features, np.zeros(1000, np.int64)), tmp_path / "x.index")
    assert (facts["recall_at_10"], facts["candidates"]) == (1, search.K)


# Bug caught: 'cannot reshape array of size 0'.
def test_one_image_has_no_neighbors(tmp_path):
    folder = write_parts(tmp_path, np.ones((1, WIDTH)), np.zeros(1, np.int64))
    with pytest.raises(UsageError, match=r"at least 2 images\. Received: 1, in"):
        build_index(folder, tmp_path / "x.index")


# Bugs caught: rows of another part or block, cosines of rounded vectors, candidates in the order of their codes, a
# recall that is not measured or not reached, names of other rows, warnings by FAISS that users cannot follow.
@pytest.mark.parametrize(("memory", "kind"), [(2**30, "IVF46,SQfp16"), (100_000, "IVF46,PQ2")])
def test_an_index_finds_what_the_exact_search_finds(folder, tmp_path, monkeypatch, capfd, memory, kind):
    monkeypatch.setattr(search, "BLOCK", 700)
    monkeypatch.setattr(search, "choose_factory", lambda *_: kind)
    facts = build_index(folder, tmp_path / "x.index", memory=memory)
    assert "WARNING" not in capfd.readouterr().err
    index, file = open_index(tmp_path / "x.index"), read_feature_file(folder)
    assert facts["recall_at_10"] >= 0.99
    noise = np.random.default_rng(1).normal(size=(50, WIDTH))
    queries = file.features[np.arange(0, ROWS, 60)] + 0.1 * noise.astype(np.float32)
    exact, found = file.neighbors(queries, k=10), index.neighbors(queries, k=10)
    both = zip(exact.indices, found.indices, strict=True)
    assert np.mean([len(np.intersect1d(one, other)) for one, other in both]) > 9.6
    near = file.features[found.indices[7]]
    cosines = near @ queries[7] / np.linalg.norm(near, axis=1) / np.linalg.norm(queries[7])
    np.testing.assert_allclose(found.cosines[7], cosines, rtol=1e-5)
    assert (np.diff(found.cosines, axis=1) <= 0).all()
    assert index.entry(2500) == file.entry(2500)
    assert index.entry(2500)["name"] == "n2500"
    all_of_them = index.neighbors(queries[:1], k=ROWS)
    assert sorted(all_of_them.indices[0].tolist()) == list(range(ROWS)) or "PQ" in kind
    assert not (tmp_path / "x.index.work").exists()


# Bugs caught: blocks that are added again after an interruption, or twice; blocks of other features that are kept; the
# half-written index of a killed process, which nobody would remove.
def test_an_interrupted_index_resumes(folder, tmp_path, monkeypatch):
    (tmp_path / ".part-0123abcd-x.index").write_bytes(b"half")
    monkeypatch.setattr(search, "BLOCK", 700)
    saved, save = [], search._save

    def save_three(path, engine):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path.name)
        save(path, engine)

    monkeypatch.setattr(search, "_save", save_three)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, tmp_path / "x.index")
    assert not (tmp_path / "x.index").exists()
    monkeypatch.setattr(search, "_save", lambda path, engine: (saved.append(path.name), save(path, engine)))
    build_index(folder, tmp_path / "x.index")
    assert saved == ["trained", *(f"rows-{start:012d}" for start in range(0, ROWS, 700))]
    assert len(open_index(tmp_path / "x.index")) == open_index(tmp_path / "x.index").engine.ntotal == ROWS
    assert {path.name for path in tmp_path.iterdir()} == {"x.index", "x.index.json"}


# Bug caught: rows in lists by their old features, so that the search finds few of the neighbors, in silence.
def test_features_that_were_made_again_are_refused(folder, tmp_path):
    here, path = tmp_path / "parts", tmp_path / "x.index"
    shutil.copytree(folder, here)
    build_index(here, path)
    shutil.copytree(here, tmp_path / "moved")
    assert len(open_index(path, tmp_path / "moved")) == ROWS
    part, old = Part(here, 2, 2), read_feature_file(here)
    index = np.array(part.indices(ROWS, 100))
    facts = part_facts(part)
    write_part(part, -old.features[index], index, old.labels[index], [f"n{i}" for i in index], facts)
    with pytest.raises(UsageError, match="recomputed since"):
        open_index(path)
    build_index(here, path)
    assert len(open_index(path)) == ROWS


def test_the_kind_of_index_follows_from_the_memory():
    assert choose_factory(10**6, 512, 8 * 2**30) == "IVF2048,SQfp16"
    assert choose_factory(10**6, 512, 2**28) == "IVF2048,PQ64"
    assert choose_factory(10**8, 2048, 8 * 2**30) == "IVF16384,PQ64"
    assert choose_factory(3, 5, 2**20) == "IVF1,SQfp16"
    with pytest.raises(UsageError, match="needs more --memory, at least 8712MiB"):
        choose_factory(10**9, 512, 2**30)
    choose_factory(10**9, 512, 8712 * 2**20)


# Bugs caught: an index that answers for other features; a damaged one with a traceback.
def test_other_features_and_damage_are_refused(folder, tmp_path):
    path = tmp_path / "x.index"
    with pytest.raises(UsageError, match=r"Index not found: .*swav-tf index"):
        open_index(path)
    build_index(folder, path)
    facts = json.loads((folder / "features.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "features.json").write_text(
        json.dumps(facts | {"model": {"path": "m", "weights_sha256": "b"}})
    )
    with pytest.raises(UsageError, match=r"model.weights_sha256: was 'a', now 'b'"):
        open_index(path, tmp_path / "other")
    os.truncate(path, 1000)
    with pytest.raises(DataError, match="cannot be read"):
        open_index(path)


# Bugs caught: a query that lists the folder of images; a picture of another image; a file whose name is not UTF-8
# searched under its printable name; an accuracy by other neighbors.
def test_search_of_images(tmp_path, folders, monkeypatch):
    odd = os.path.join(os.fsencode(folders), b"cat", b"\xe9.png")
    os.rename(folders / "cat" / "02.png", odd)
    model, images = NumpyBackend(), class_folders(folders)
    extract_features(model, images, Part(tmp_path / "parts", 1, 1))
    build_index(tmp_path / "parts", tmp_path / "x.index")
    index, file = open_index(tmp_path / "x.index"), read_feature_file(tmp_path / "parts")
    view = query_view(folders / "cat" / "07.png", model)
    found = similar_images(view, index, model, k=4)
    assert found == similar_images(view, file, model, k=4)
    assert (found[0]["name"], found[0]["class"]) == ("cat/07.png", "cat")
    listed = images_of(file, model.data)
    [near] = [entry for entry in map(index.entry, range(len(index))) if "\\" in entry["name"]]
    with open(odd, "rb") as png:
        assert images_found([near], index, model.data).source.read(near["index"]) == png.read()
    monkeypatch.setattr(os, "scandir", None)
    named = images_found(found, index, model.data)
    for near in found:
        assert named.source.read(near["index"]) == listed.source.read(near["index"])
    Image.open(folders / found[1]["name"]).close()
    asked = FeatureFile(tmp_path / "x", file.features, file.labels, file.index, file.names)
    exact = knn_accuracies(file, asked, neighbors=[1, 5])
    assert knn_accuracies(file, asked, neighbors=[1, 5], index=index) == exact


# Bug caught: pictures of other images, because an archive has changed since the index was built.
def test_images_of_an_archive_that_has_changed(tmp_path, folders):
    def pack(*photos):
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for photo in photos:
                tar.add(photo, photo.name)

    pack(*(photos := sorted(folders.glob("cat/*.png"))))
    model = NumpyBackend()
    images = open_images(str(tmp_path / "photos.tar"), like=Data())
    extract_features(model, images, Part(tmp_path / "parts", 1, 1))
    build_index(tmp_path / "parts", tmp_path / "x.index")
    index = open_index(tmp_path / "x.index")
    assert images_found([], index, model.data).source.read(3) == photos[3].read_bytes()
    pack(photos[0], *photos[2:])
    with pytest.raises(
        UsageError, match=r"must contain the 10 images of .*x.index.*9 images with other names"
    ):
        images_found([], index, model.data)
