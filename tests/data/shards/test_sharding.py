"""Packing folders into shards, and the index that comes with them."""

import errno
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swav_tf.data import sharding
from swav_tf.data.bad_images import BadImages
from swav_tf.data.check import check_data
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import fingerprint, open_source
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.pretraining import Data

PACK = Path(__file__).with_name("pack.py")
ROOT = Path(__file__).parents[3]
CRUEL_NAMES = (
    b"a b c.jpg",
    b"caf\xe9.jpg",
    b"line\nbreak\t.jpg",
    "日本\u2028.jpg".encode(),
    b"-o=x;$(id).jpg",
    b"\x1b[2J.jpg",
)


@pytest.fixture
def images(tmp_path, small_photo, encoded):
    """Three classes with 23 images in all, of different lengths and cruel names."""
    root = tmp_path / "images"
    names = [*CRUEL_NAMES, *(b"%02d.JPEG" % i for i in range(17))]
    for number, name in enumerate(names):
        folder = root / ("n0", "n1 with space", "n2")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = small_photo[: 20 + number, :40]
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(encoded(pixels))
    return root


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


def opened(folder):
    return open_source(Data(kind="tfrecord", path=str(folder)))


def assert_same_images(ours, theirs):
    assert len(ours) == len(theirs)
    assert ours.class_names == theirs.class_names
    for i in range(len(theirs)):
        assert (ours.image_name(i), ours.label(i), ours.read(i)) == (
            theirs.image_name(i),
            theirs.label(i),
            theirs.read(i),
        )


# Bugs caught: an image lost or twice at a shard's seam, bytes encoded again, names that are no text, an index
# whose order is not the folder's: a run could not go on with its shards.
@pytest.mark.parametrize("shards", [1, 4, 23])
def test_shards_hold_the_folder_as_it_is(images, tmp_path, shards):
    source = ClassFolders(images)
    packed = write_shards(source, tmp_path / "out", shards=shards)
    assert_same_images(opened(tmp_path / "out"), source)
    assert fingerprint(opened(tmp_path / "out")) == fingerprint(source)
    assert [shard.examples for shard in packed.index.shards] == [
        23 * (k + 1) // shards - 23 * k // shards for k in range(shards)
    ]


def test_unlabelled_images(images, tmp_path):
    write_shards(ImageFolder(images), tmp_path / "out", shards=2)
    assert_same_images(opened(tmp_path / "out"), ImageFolder(images))


# Bugs caught: order of completion, times or names of machines in the files.
def test_the_bytes_do_not_depend_on_threads(images, tmp_path):
    for name, threads in (("one", 1), ("five", 5)):
        write_shards(ClassFolders(images), tmp_path / name, shards=4, threads=threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "five")
    assert not [
        p for p in (tmp_path / "one").iterdir() if "part" in p.name or "plan" in p.name or "journal" in p.name
    ]


def test_the_size_of_shards(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "MIB", 1000)
    total = sum(path.stat().st_size for path in images.rglob("*") if path.is_file())
    packed = write_shards(ClassFolders(images), tmp_path / "out", shard_mib=5)
    assert len(packed.index.shards) == round(total / 5000) > 1


class TestResumption:
    # Bugs caught: a half shard taken for whole, whole ones written again, a cut line in the journal that ends it.
    def test_after_kill_9(self, images, tmp_path):
        write_shards(ClassFolders(images), tmp_path / "whole", shards=6)
        out = tmp_path / "out"
        killed = subprocess.run(
            [sys.executable, PACK, images, out, "2"], check=False, cwd=Path(__file__).parents[3]
        )
        assert killed.returncode == -signal.SIGKILL
        assert len(list(out.glob("images-*.tfrecord"))) == 2
        assert list(out.glob(".images-*.part"))
        with pytest.raises(DataError, match="not all written yet"):
            opened(out)
        with (out / "shards.journal.jsonl").open("a") as journal:
            journal.write('{"name": "images-00002-of-00006.tfrecord", "exam')
        before = {p.name: p.stat().st_mtime_ns for p in out.glob("images-*.tfrecord")}
        progress = []
        packed = write_shards(ClassFolders(images), out, shards=6, on_progress=progress.append)
        assert packed.kept == 2
        assert progress[0] == packed.images_before == 7
        assert progress[-1] == 23
        assert contents(out) == contents(tmp_path / "whole")
        assert all((out / name).stat().st_mtime_ns == then for name, then in before.items())

    def test_a_kept_shard_that_was_damaged_is_written_again(self, images, tmp_path):
        write_shards(ClassFolders(images), tmp_path / "whole", shards=6)
        out = tmp_path / "out"
        subprocess.run([sys.executable, PACK, images, out, "3"], check=False, cwd=Path(__file__).parents[3])
        shard = out / "images-00001-of-00006.tfrecord"
        data = bytearray(shard.read_bytes())
        data[40] ^= 1
        shard.write_bytes(data)
        assert write_shards(ClassFolders(images), out, shards=6).kept == 2
        assert contents(out) == contents(tmp_path / "whole")

    @pytest.mark.parametrize("change", ["image", "touch", "new", "shards"])
    def test_what_changed_since_is_refused(self, images, tmp_path, change):
        # Half of the shards of the old images, half of the new ones.
        out = tmp_path / "out"
        subprocess.run([sys.executable, PACK, images, out, "1"], check=False, cwd=Path(__file__).parents[3])
        image = next((images / "n0").glob("*.JPEG"))
        if change == "image":
            image.write_bytes(image.read_bytes() + b"\0")
        elif change == "touch":
            os.utime(image, ns=(1, 1))
        elif change == "new":
            (images / "n2" / "zz.jpg").write_bytes(b"x")
        what = {"touch": "the times of the images' last change", "shards": "the number of shards"}
        with pytest.raises(UsageError, match=f"; {what.get(change, 'the images')} changed since.*--fresh"):
            write_shards(ClassFolders(images), out, shards=5 if change == "shards" else 6)
        packed = write_shards(ClassFolders(images), out, shards=5, fresh=True)
        assert packed.kept == 0
        assert_same_images(opened(out), ClassFolders(images))

    # Bug caught: hours of whole shards thrown away, for an earlier version kept no times of the images.
    def test_a_packing_of_an_earlier_version_goes_on(self, images, tmp_path):
        out = tmp_path / "out"
        subprocess.run([sys.executable, PACK, images, out, "2"], check=False, cwd=Path(__file__).parents[3])
        plan = json.loads((out / "shards.plan.json").read_text())
        del plan["source"]["times_sha256"]
        (out / "shards.plan.json").write_text(json.dumps(plan))
        packed = write_shards(ClassFolders(images), out, shards=6)
        assert packed.kept == 2
        assert "times_sha256" in packed.index.source

    def test_what_is_packed_is_left_alone(self, images, tmp_path):
        out = tmp_path / "out"
        write_shards(ClassFolders(images), out, shards=3)
        before, progress = contents(out), []
        assert write_shards(ClassFolders(images), out, on_progress=progress.append).kept == 3
        assert len(progress) == 3
        assert progress[-1] == 23
        assert contents(out) == before
        with pytest.raises(UsageError, match="another number of files"):
            write_shards(ClassFolders(images), out, shards=4)
        (images / "n2" / "zz.jpg").write_bytes(b"x")
        with pytest.raises(UsageError, match=r"other images: 23 images.*24 images"):
            write_shards(ClassFolders(images), out, shards=3)

    # Bug caught: names and sizes alone compared, so that the old pixels are kept without a word.
    def test_an_image_that_was_replaced_by_one_of_the_same_length_is_told(self, images, tmp_path):
        out = tmp_path / "out"
        write_shards(ClassFolders(images), out, shards=3)
        before, image = contents(out), next((images / "n1 with space").glob("*.JPEG"))
        data = bytearray(image.read_bytes())
        data[-40] ^= 1
        image.write_bytes(data)
        os.utime(image, ns=(1, 1))  # whatever the clock's steps
        with pytest.raises(UsageError, match=r"same names and sizes, but other times.*data check .*--fresh"):
            write_shards(ClassFolders(images), out, shards=3)
        assert contents(out) == before
        write_shards(ClassFolders(images), out, shards=3, fresh=True)
        assert_same_images(opened(out), ClassFolders(images))

    def test_an_index_of_an_earlier_version_knows_no_times(self, images, tmp_path):
        out = tmp_path / "out"
        write_shards(ClassFolders(images), out, shards=3)
        document = json.loads((out / "index.json").read_text())
        del document["source"]["times_sha256"]
        (out / "index.json").write_text(json.dumps(document))
        os.utime(next((images / "n0").glob("*.JPEG")), ns=(1, 1))
        assert write_shards(ClassFolders(images), out, shards=3).kept == 3
        assert len(opened(out)) == 23

    # Bug caught: shards of another kind, whose names are the same, taken for what was asked for: no labels, or some.
    def test_another_kind_is_refused(self, images, tmp_path):
        write_shards(ClassFolders(images), tmp_path / "out", shards=3)
        with pytest.raises(UsageError, match=r"another kind: .* class_folders, .*Received: .* images, for 3"):
            write_shards(ImageFolder(images), tmp_path / "out", shards=3)

    # Bug caught: only the lengths of finished shards looked at.
    def test_a_finished_shard_that_was_damaged_is_told(self, images, tmp_path):
        out = tmp_path / "out"
        write_shards(ClassFolders(images), out, shards=6)
        shard = out / "images-00004-of-00006.tfrecord"
        data = bytearray(shard.read_bytes())
        data[40] ^= 1
        shard.write_bytes(data)
        before = contents(out)
        with pytest.raises(
            DataError, match=r"1 of 6 are damaged: images-00004-of-00006\.tfrecord \(.*--fresh"
        ):
            write_shards(ClassFolders(images), out, shards=6)
        assert contents(out) == before
        assert write_shards(ClassFolders(images), out, shards=6, fresh=True).kept == 0
        assert check_data(opened(out)).bad_shards == {}

    # Bug caught: the index removed before the shards, which nobody may touch from then on.
    @pytest.mark.parametrize("state", ["finished", "unfinished"])
    def test_fresh_that_was_killed_is_given_again(self, images, tmp_path, monkeypatch, state):
        unlink, iterdir = Path.unlink, Path.iterdir

        class Killed(BaseException):
            pass

        removals = 0
        while True:
            out = tmp_path / f"out-{removals}"
            if state == "finished":
                write_shards(ClassFolders(images), out, shards=6)
            else:
                subprocess.run([sys.executable, PACK, images, out, "4"], check=False, cwd=ROOT)
            left = removals

            def deadly(path, missing_ok=False):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                unlink(path, missing_ok=missing_ok)

            with monkeypatch.context() as patched:
                patched.setattr(Path, "unlink", deadly)
                # The worst order: shards.plan.json, then index.json, then the shards.
                patched.setattr(Path, "iterdir", lambda path: reversed(sorted(iterdir(path))))
                try:
                    sharding.remove_packing(out)
                except Killed:
                    pass
                else:
                    break
            write_shards(ClassFolders(images), out, shards=3, fresh=True)
            assert_same_images(opened(out), ClassFolders(images))
            removals += 1
        assert removals >= 6
        assert os.listdir(out) == [".lock"]

    def test_a_folder_with_something_else_is_not_touched(self, images, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("x")
        for fresh in (False, True):
            with pytest.raises(UsageError, match=r"new or empty.*thesis\.txt"):
                write_shards(ClassFolders(images), tmp_path / "out", fresh=fresh)
        assert os.listdir(tmp_path / "out") == ["thesis.txt"]

    def test_only_one_process_packs(self, images, tmp_path):
        with sharding.locked(tmp_path / "out"), pytest.raises(UsageError, match="Only one process"):
            write_shards(ClassFolders(images), tmp_path / "out")


class TestFaults:
    # Bugs caught: a shard cut at the limit that is taken for whole; a traceback; what was whole thrown away.
    def test_a_disk_that_is_full(self, images, tmp_path):
        out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
        (images / "n2" / "zz.jpg").write_bytes(b"x" * 40_000)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(DataError, match=r"could not be written: File too large\. Make room"):
                write_shards(ClassFolders(images), out, shards=6, threads=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(out.glob(".*.part"))
        assert write_shards(ClassFolders(images), out, shards=6).kept == 5

    def test_no_room_at_all_is_told_before(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(sharding.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
        with pytest.raises(DataError, match=r"There must be room.*0 MiB free"):
            write_shards(ClassFolders(images), tmp_path / "out")

    def test_an_image_that_cannot_be_read_is_named(self, images, tmp_path, monkeypatch):
        read = ClassFolders.read

        def broken(self, index):
            if self.image_name(index).endswith("\u2028.jpg"):
                raise OSError(errno.EIO, "Input/output error")
            return read(self, index)

        monkeypatch.setattr(ClassFolders, "read", broken)
        with pytest.raises(DataError, match=r"日本\\u2028\.jpg cannot be read: Input/output error"):
            write_shards(ClassFolders(images), tmp_path / "out")

    def test_a_flipped_bit_is_one_bad_image(self, images, tmp_path):
        # JPEG decodes most damage to a picture: only a checksum tells.
        write_shards(ClassFolders(images), tmp_path / "out", shards=2)
        shard = tmp_path / "out" / "images-00001-of-00002.tfrecord"
        data = bytearray(shard.read_bytes())
        data[-100] ^= 1
        shard.write_bytes(data)
        source = opened(tmp_path / "out")
        with pytest.raises(OSError, match="checksum is wrong"):
            source.read(22)
        report = check_data(source)
        assert list(report.bad_shards) == ["images-00001-of-00002.tfrecord"]
        assert list(report.corrupt.values()) == [
            "the record's checksum is wrong: its bytes are not those that were written"
        ]


class TestHostileIndex:
    @pytest.fixture
    def out(self, images, tmp_path):
        write_shards(ClassFolders(images), tmp_path / "out", shards=3)
        return tmp_path / "out"

    @staticmethod
    def change(out, edit):
        document = json.loads((out / "index.json").read_text())
        edit(document)
        (out / "index.json").write_text(json.dumps(document))

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a/b", "a\0b", "gs://bucket/x"])
    def test_it_names_no_file_outside(self, out, name):
        self.change(out, lambda document: document["shards"][0].update(name=name))
        with pytest.raises(DataError, match="in its own folder"):
            opened(out)

    def test_a_link_out_of_the_folder_is_refused(self, out):
        shard = out / "images-00001-of-00003.tfrecord"
        shard.rename(out.parent / "elsewhere")
        shard.symlink_to(out.parent / "elsewhere")
        with pytest.raises(DataError, match=r"is a link to .*elsewhere"):
            opened(out)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda d: d.update(images=24),
            lambda d: d.update(shards=[]),
            lambda d: d["shards"][0].update(bytes=-1),
            lambda d: d["shards"][0].update(examples=7.5e300),
            lambda d: d.pop("classes"),
            lambda d: d.update(classes=["one"]),
            lambda d: d.update(files={}),
            lambda d: d.update(format="other"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, out, edit):
        self.change(out, edit)
        with pytest.raises(DataError, match=r"must be whole|must be an index"):
            opened(out)

    @pytest.mark.parametrize(
        "file", ["index.json", "index.names.bin", "index.records.npy", "images-00000-of-00003.tfrecord"]
    )
    def test_files_cut_short_or_missing_are_told(self, out, file):
        (out / file).write_bytes((out / file).read_bytes()[:-1])
        if file == "index.json":  # a cut newline changes nothing
            (out / file).write_bytes((out / file).read_bytes()[:-1])
        with pytest.raises(DataError, match=file.replace(".", r"\.")):
            opened(out)
        if file != "index.json":
            (out / file).unlink()
            with pytest.raises(DataError, match=r"missing|cannot be read"):
                opened(out)

    @pytest.mark.parametrize(("column", "value"), [(0, 0), (0, 2**40), (1, -1), (1, 2**62), (2, 3), (2, -2)])
    def test_records_outside_of_their_shard(self, out, column, value):
        records = np.load(out / "index.records.npy")
        records[5, column] = value
        table = io.BytesIO()
        np.save(table, records)
        (out / "index.records.npy").write_bytes(table.getvalue())
        sha256 = hashlib.sha256(table.getvalue()).hexdigest()
        self.change(out, lambda document: document["files"].update({"index.records.npy": sha256}))
        with pytest.raises(DataError, match="outside of the shards, or classes that are none"):
            opened(out)

    def test_nothing_is_unpickled(self, out):
        np.save(out / "index.records.npy", np.array([{"a": 1}], object), allow_pickle=True)
        sha256 = hashlib.sha256((out / "index.records.npy").read_bytes()).hexdigest()
        self.change(out, lambda document: document["files"].update({"index.records.npy": sha256}))
        with pytest.raises(DataError, match="allow_pickle"):
            opened(out)


# Bugs caught: a name that breaks a list of lines in two, so that a resumed run counts it anew.
def test_cruel_names_in_the_list_of_bad_images(images, tmp_path):
    source = ClassFolders(images)
    for _ in range(2):
        tally = BadImages(tmp_path / "bad.txt", images=100, max_share=1)
        for i in range(len(source)):
            tally.bad(source.image_name(i), "a\treason\nof two lines")
    lines = (tmp_path / "bad.txt").read_text().split("\n")
    assert len(lines) == 24
    assert all(line.count("\t") == 1 for line in lines[:-1])
    assert any(line.startswith(r"n1 with space/caf\xe9.jpg") for line in lines)
    assert not any("\x1b" in line or "\u2028" in line for line in lines)
