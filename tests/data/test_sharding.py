"""Packing folders into shards: the same images, whatever interrupts it; damaged and hostile indices are refused."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swav_tf.data import sharding
from swav_tf.data.check import check_data
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import fingerprint, open_source
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import locked_folder
from swav_tf.recipe.data import Data

pytest.importorskip("tensorflow")

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "shards"
ODD_NAMES = (
    b"a b c.jpg",
    b"caf\xe9.jpg",
    b"line\nbreak\t.jpg",
    "日本\u2028.jpg".encode(),
    b"-o=x;$(id).jpg",
    b"\x1b[2J.jpg",
)


@pytest.fixture
def images(tmp_path, small_photo, encoded):
    """Three classes with 23 images in all, of different lengths and odd names."""
    root = tmp_path / "images"
    for number, name in enumerate([*ODD_NAMES, *(b"%02d.JPEG" % i for i in range(17))]):
        folder = root / ("n0", "n1 with space", "n2")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(encoded(small_photo[: 20 + number, :40]))
    return root


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


def opened(folder):
    return open_source(Data(kind="tfrecord", path=str(folder)))


def flip_bit(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def assert_same_images(found, expected):
    assert (len(found), found.class_names) == (len(expected), expected.class_names)
    for i in range(len(expected)):
        for read in ("image_name", "label", "read"):
            assert getattr(found, read)(i) == getattr(expected, read)(i)


class Killed(BaseException):
    """The end of the process."""


@pytest.fixture
def interrupted(images, tmp_path, monkeypatch):
    """interrupted(n) -> a folder in which a packing into 6 shards ended within the shard after n finished ones."""

    def interrupt(finished):
        first = 23 * finished // 6
        with monkeypatch.context() as patched:
            make = sharding._Packing._example

            def deadly(packing, index):
                if index > first:
                    raise Killed
                return make(packing, index)

            patched.setattr(sharding._Packing, "_example", deadly)
            with pytest.raises(Killed):
                write_shards(ClassFolders(images), tmp_path / "out", shards=6, threads=1)
        return tmp_path / "out"

    return interrupt


# === What is packed ===


# Bugs caught: an image lost or twice where shards meet, bytes encoded again, names that are not text, an index
# in another order than the folder: a run could not resume with its shards.
@pytest.mark.parametrize("shards", [1, 4, 23])
def test_shards_contain_the_folder_as_it_is(images, tmp_path, shards):
    source = ClassFolders(images)
    packed = write_shards(source, tmp_path / "out", shards=shards)
    assert_same_images(opened(tmp_path / "out"), source)
    assert fingerprint(opened(tmp_path / "out")) == fingerprint(source)
    assert [shard.examples for shard in packed.index.shards] == [
        23 * (k + 1) // shards - 23 * k // shards for k in range(shards)
    ]


# Bug caught: another order of features, another framing than that of commit 8d665af, whose own encoder wrote them.
def test_the_bytes_are_those_of_earlier_versions(tmp_path):
    golden = opened(GOLDEN)
    for index in range(len(golden)):
        path = tmp_path / "images" / golden.image_name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(golden.read(index))
    write_shards(ClassFolders(tmp_path / "images"), tmp_path / "out", shards=3)
    expected = contents(GOLDEN)
    del expected["index.json"]  # with times of the images
    assert {
        name: sha256 for name, sha256 in contents(tmp_path / "out").items() if name in expected
    } == expected


# Bugs caught: order of completion, times or names of machines in the files; files left over.
def test_the_bytes_do_not_depend_on_threads(images, tmp_path):
    for name, threads in (("one", 1), ("five", 5)):
        write_shards(ImageFolder(images), tmp_path / name, shards=2, threads=threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "five")
    assert len(contents(tmp_path / "one")) == 2 + 3
    assert_same_images(opened(tmp_path / "one"), ImageFolder(images))


def test_the_size_of_shards(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "MIB", 1000)
    total = sum(path.stat().st_size for path in images.rglob("*") if path.is_file())
    packed = write_shards(ClassFolders(images), tmp_path / "out", shard_mib=5)
    assert len(packed.index.shards) == round(total / 5000) > 1


# === Interruptions ===

KILL = """
import os, signal, sys
from swav_tf.data import sharding
from swav_tf.data.folders import ClassFolders
make = sharding._Packing._example
def deadly(packing, index):
    if index == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(packing, index)
sharding._Packing._example = deadly
sharding.write_shards(ClassFolders(sys.argv[1]), sys.argv[2], shards=6, threads=1)
"""


# Bugs caught: half a shard taken for a complete one, complete ones written again, files left over.
@pytest.mark.multiprocess
def test_after_kill_9_finished_shards_are_kept(images, tmp_path):
    write_shards(ClassFolders(images), tmp_path / "expected", shards=6)
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILL, images, out], check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.glob("images-*.tfrecord"))) == 2
    assert list(out.glob(".part-*-images-*"))
    with pytest.raises(DataError, match="incomplete"):
        opened(out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("images-*.tfrecord")}
    progress = []
    assert (
        write_shards(ClassFolders(images), out, shards=6, on_progress=lambda *p: progress.append(p)).kept == 2
    )
    stages = {stage: [images for images, its in progress if its == stage] for _, stage in progress}
    assert list(stages) == ["found", "packed", "indexed"]
    assert (stages["packed"][0], stages["packed"][-1]) == (7, 23)
    assert contents(out) == contents(tmp_path / "expected")
    assert all((out / name).stat().st_mtime_ns == then for name, then in before.items())


# Bug caught: a shard of the old images kept among the new ones.
@pytest.mark.parametrize(
    ("change", "kept"), [("nothing", 4), ("damage", 3), ("size", 3), ("time", 3), ("name", 2), ("shards", 0), ("kind", 0)]
)  # fmt: skip
def test_shards_are_kept_if_their_images_are_unchanged(images, tmp_path, interrupted, change, kept):
    out, source, shards = interrupted(4), ClassFolders, 6
    image = images / ClassFolders(images).image_name(3)  # in the second shard
    if change == "damage":
        flip_bit(out / "images-00001-of-00006.tfrecord", 40)
    elif change == "size":
        image.write_bytes(image.read_bytes() + b"\0")
    elif change == "time":
        os.utime(image, ns=(1, 1))
    elif change == "name":
        image.rename(image.with_name("-first.jpg"))  # the first shard contains it now
    elif change == "shards":
        shards = 5
    elif change == "kind":
        source = ImageFolder
    assert write_shards(source(images), out, shards=shards).kept == kept
    write_shards(source(images), tmp_path / "expected", shards=shards)
    assert contents(out) == contents(tmp_path / "expected")


def test_what_is_packed_is_left_alone_unless_images_changed(images, tmp_path):
    out, progress = tmp_path / "out", []
    write_shards(ClassFolders(images), out, shards=3)
    before = contents(out)
    assert write_shards(ClassFolders(images), out, on_progress=lambda *p: progress.append(p)).kept == 3
    assert (progress[0], progress[-1]) == ((0, "found"), (23, "checked"))
    with pytest.raises(UsageError, match=r"in 3 shards\. Received: 23 images, .*, for 4\. Choose"):
        write_shards(ClassFolders(images), out, shards=4)
    with pytest.raises(UsageError, match=r"class_folders, in 3 shards\. Received: .* images, for 3\. Choose"):
        write_shards(ImageFolder(images), out, shards=3)
    image = next((images / "n1 with space").glob("*.JPEG"))
    flip_bit(image, -40)
    os.utime(image, ns=(1, 1))
    with pytest.raises(
        UsageError, match=r"same names and sizes, but other modification times.*data check .*--fresh"
    ):
        write_shards(ClassFolders(images), out, shards=3)
    (images / "n2" / "zz.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"other images or settings: 23 images.*24 images.*--fresh"):
        write_shards(ClassFolders(images), out, shards=3)
    assert contents(out) == before
    assert write_shards(ClassFolders(images), out, shards=3, fresh=True).kept == 0
    assert_same_images(opened(out), ClassFolders(images))


# Bug caught: the list's labels corrected, and the command repeated with success while the shards keep the old ones.
def test_changed_labels_are_not_taken_for_packed(images, tmp_path):
    table, names = tmp_path / "list.csv", sorted(f"{p.name}" for p in (images / "n2").glob("*.JPEG"))
    for labels, refusal in (
        (("cat", "dog"), None),
        (("dog", "cat"), "other labels"),
        (("cat", "cow"), "names"),
    ):
        rows = [f"images/n2/{name},{labels[i % 2]}" for i, name in enumerate(names)]
        table.write_text("\n".join(["path,label", *rows]))
        listed = open_source(Data(kind="list", path=str(table)))
        if refusal is None:
            write_shards(listed, tmp_path / "out", shards=1)
            assert_same_images(opened(tmp_path / "out"), listed)
            continue
        with pytest.raises(UsageError, match=rf"{refusal}.*--fresh"):
            write_shards(listed, tmp_path / "out", shards=1)


def test_an_index_of_an_early_version_has_no_times(images, tmp_path):
    out = tmp_path / "out"
    write_shards(ClassFolders(images), out, shards=3)
    document = json.loads((out / "index.json").read_text())
    del document["source"]["times_sha256"], document["source"]["labels_sha256"]
    (out / "index.json").write_text(json.dumps(document))
    os.utime(next((images / "n0").glob("*.JPEG")), ns=(1, 1))
    assert write_shards(ClassFolders(images), out, shards=3).kept == 3
    assert len(opened(out)) == 23


# Bug caught: the index removed before the shards, which no call may touch from then on.
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_fresh_can_be_repeated_after_a_kill(images, monkeypatch, interrupted, tmp_path, state):
    unlink, iterdir = Path.unlink, Path.iterdir
    out = tmp_path / "out"
    for removals in range(20):
        if state == "finished":
            write_shards(ClassFolders(images), out, shards=6)
        else:
            interrupted(4)
        left = [removals]

        def deadly(path, missing_ok=False, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", deadly)
            # The worst order: shards.plan.json, then index.json, then the shards.
            patched.setattr(Path, "iterdir", lambda path: reversed(sorted(iterdir(path))))
            try:
                sharding._remove_packing(out)
            except Killed:
                pass
            else:
                break
        write_shards(ClassFolders(images), out, shards=3, fresh=True)
        assert len(contents(out)) == 3 + 3
        sharding._remove_packing(out)
    assert removals >= 5
    assert os.listdir(out) == [".lock"]


def test_folders_of_others_are_not_touched(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"new or empty.*thesis\.txt"):
            write_shards(ClassFolders(images), tmp_path / "out", fresh=fresh)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]
    with locked_folder(tmp_path / "new"), pytest.raises(UsageError, match="is in use"):
        write_shards(ClassFolders(images), tmp_path / "new")


# === Faults ===


# Bugs caught: a shard cut at the limit that is taken for complete; a traceback; finished shards thrown away.
def test_a_full_disk(images, tmp_path, monkeypatch):
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    (images / "n2" / "zz.jpg").write_bytes(b"x" * 40_000)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"could not be written: .*File too large.*Free some space"):
            write_shards(ClassFolders(images), out, shards=6, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(out.glob(".part*"))
    assert write_shards(ClassFolders(images), out, shards=6).kept == 5
    monkeypatch.setattr(sharding.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(DataError, match=r"has 0 MiB free"):
        write_shards(ClassFolders(images), tmp_path / "other")


def test_an_image_that_cannot_be_read_is_named(images, tmp_path, monkeypatch):
    read = ClassFolders.read

    def broken(self, index):
        if self.image_name(index).endswith("\u2028.jpg"):
            raise OSError(errno.EIO, "Input/output error")
        return read(self, index)

    monkeypatch.setattr(ClassFolders, "read", broken)
    with pytest.raises(DataError, match=r"日本\\u2028\.jpg cannot be read: Input/output error"):
        write_shards(ClassFolders(images), tmp_path / "out")


# Bugs caught: JPEG decodes most damage to a picture, only a checksum shows it; a finished packing whose lengths alone
# are checked.
def test_a_flipped_bit(images, tmp_path):
    out = tmp_path / "out"
    write_shards(ClassFolders(images), out, shards=2)
    flip_bit(out / "images-00001-of-00002.tfrecord", -100)
    source = opened(out)
    with pytest.raises(OSError, match="checksum is wrong"):
        source.read(22)
    report = check_data(source)
    assert list(report.bad_shards) == ["images-00001-of-00002.tfrecord"]
    assert list(report.corrupt.values()) == [
        "the record's checksum is wrong: its bytes are not those that were written"
    ]
    before = contents(out)
    with pytest.raises(DataError, match=r"1 of 2 are damaged: images-00001-of-00002\.tfrecord \(.*--fresh"):
        write_shards(ClassFolders(images), out, shards=2)
    assert contents(out) == before


# === Parts ===


# Bugs caught: an image lost or twice where parts meet, classes numbered by part, parts in another order than the images,
# a part that lacks and is not named, parts of other images read as one.
def test_parts_are_read_as_one(images, tmp_path):
    source, out = ClassFolders(images), tmp_path / "out"
    for number in (3, 1):
        write_shards(source, out, part=(number, 3), shards=2)
    with pytest.raises(DataError, match=r"all its 3 parts. Missing or unfinished: 2/3. .*--part 2/3"):
        opened(out)
    write_shards(source, out, part=(2, 3))
    found = open_source(Data(path=str(out)))
    assert_same_images(found, source)
    assert fingerprint(found) == fingerprint(source)
    assert write_shards(source, out, part=(3, 3), shards=2).kept == 2
    assert check_data(found).bad_shards == {}
    flip_bit(out / "part-00002-of-00003" / "images-00000-of-00001.tfrecord", 100)
    assert list(check_data(found).bad_shards) == ["part-00002-of-00003/images-00000-of-00001.tfrecord"]
    for number, count in ((1, 4), (None, None)):
        with pytest.raises(UsageError, match=r"(contains parts of 3|must be new or empty)"):
            write_shards(source, out, part=number and (number, count))
    (images / "n0" / "zzz.JPEG").write_bytes((images / "n2" / "05.JPEG").read_bytes())
    write_shards(ClassFolders(images), out, part=(2, 3), fresh=True)
    with pytest.raises(DataError, match=r"Part 2/3 does not match part 1/3"):
        opened(out)


# Bugs caught: parts packed before and after a correction of labels that are read as one; parts to be packed again
# although none of their own labels changed.
def test_parts_with_labels_of_different_times(images, tmp_path):
    source, out = ClassFolders(images), tmp_path / "out"
    write_shards(source, out, part=(1, 2))
    source._labels = source._labels.copy()
    source._labels[0] = 2
    write_shards(source, out, part=(2, 2))
    with pytest.raises(DataError, match="Labels changed in between"):
        opened(out)
    with pytest.raises(UsageError, match="other labels"):
        write_shards(source, out, part=(1, 2))
    write_shards(source, out, part=(1, 2), fresh=True)
    assert opened(out).label(0) == 2
    source._labels[-1] = 0  # of part 2
    assert write_shards(source, out, part=(1, 2)).kept
    write_shards(source, out, part=(2, 2), fresh=True)
    assert opened(out).label(len(source) - 1) == 0


# Bug caught: offsets of records taken for numbers of shards.
def test_stamps_are_of_the_shards_with_the_images(images, tmp_path):
    write_shards(ClassFolders(images), tmp_path / "out", shards=4)
    source = opened(tmp_path / "out")
    everything, [some] = list(source.stamps(range(23))), source.stamps(range(7, 9))
    assert len(everything) == 4
    assert some == everything[1]
