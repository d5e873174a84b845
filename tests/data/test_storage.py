"""Images that fsspec reads are the same as local ones, in an object store (`memory://`) and in an archive (`zip://`)."""

import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from swav_tf.data import storage
from swav_tf.data.check import check_data
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.recognition import recognize
from swav_tf.data.sharding import write_shards
from swav_tf.data.sources import contents_sha256, fingerprint, open_source, read_image
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.data import Data


@pytest.fixture(scope="module")
def places(tmp_path_factory, small_photo, encoded):
    """{name: url} of copies of one folder: class folders, their shards, and these shards without index."""
    root = tmp_path_factory.mktemp("places")
    for i in range(16):
        path = root / "images" / ("b", "a a", "c/deep")[i % 3] / f"{i:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = small_photo.copy()
        pixels[:, :60] = 10 * i
        path.write_bytes(encoded(pixels))
    for hidden in ("a a/._hidden.JPEG", ".cache/y.JPEG", "b/.cache/z.JPEG"):
        (root / "images" / hidden).parent.mkdir(exist_ok=True)
        (root / "images" / hidden).write_bytes(b"x")
    write_shards(ClassFolders(root / "images"), root / "shards", shards=3)
    (root / "foreign").mkdir()
    for path in (root / "shards").glob("*.tfrecord"):
        (root / "foreign" / path.name).write_bytes(path.read_bytes())
    archive = tmp_path_factory.mktemp("archive") / "places.zip"
    memory = fsspec.filesystem("memory")
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in root.rglob("*"):
            if path.is_file():
                name = path.relative_to(root).as_posix()
                memory.pipe_file(f"/places/{name}", path.read_bytes())
                zipped.write(path, name)
    yield {
        "local": lambda name: f"{root}/{name}",
        "memory": lambda name: f"memory://places/{name}",
        "zip": lambda name: f"zip://{name}::{archive}",
    }
    memory.rm("/places", recursive=True)


KINDS = [("class_folders", "images"), ("images", "images"), ("tfrecord", "shards"), ("tfrecord", "foreign")]


# Bug caught: a replaced picture that goes unnoticed, local or remote.
def test_the_contents_of_replaced_files_differ(tmp_path):
    memory = fsspec.filesystem("memory")

    def write_zip(data):
        with zipfile.ZipFile(tmp_path / "top.zip", "w") as zipped:  # with two folders at its top
            for name in ("a/a.png", "b/b.png"):
                zipped.writestr(name, data)

    for root, write in (
        (str(tmp_path), lambda data: (tmp_path / "a.png").write_bytes(data)),
        ("memory://replaced", lambda data: memory.pipe_file("/replaced/a.png", data)),
        (str(tmp_path / "top.zip"), write_zip),
    ):
        found = []
        for data in (b"one", b"three"):
            write(data)
            found += [contents_sha256(ImageFolder(root)) for _ in range(2)]
        assert found[0] == found[1] != found[2] == found[3]
    memory.rm("/replaced", recursive=True)


# Bugs caught: another order than that of the local folder, hidden files, a name cut wrongly, a range from the start.
@pytest.mark.parametrize("place", ["memory", "zip"])
@pytest.mark.parametrize(("kind", "folder"), KINDS)
def test_the_same_images_in_the_same_order(places, monkeypatch, place, kind, folder):
    here, there = (open_source(Data(kind=kind, path=places[p](folder))) for p in ("local", place))
    assert fingerprint(there) == fingerprint(here)
    assert there.class_names == here.class_names
    for i in range(16):
        assert there.read(i) == here.read(i)
        assert there.label(i) == here.label(i)
    np.testing.assert_array_equal(read_image(there, 3), read_image(here, 3))
    report = check_data(there, threads=3)
    assert (report.images, report.corrupt) == (16, {})
    assert report.bad_shards == ({} if folder == "shards" else None)


# Bug caught: bytes of another place, where zipfile seeks from the position that another thread has left.
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_in_a_zip_file_are_read_at_positions_of_their_own(tmp_path, compression):
    content = np.random.default_rng(0).bytes(100_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as zipped:
        zipped.writestr("first", content[::-1])
        zipped.writestr("folder/second", content)
    first, second = (f"zip://{name}::{tmp_path / 'x.zip'}" for name in ("first", "folder/second"))
    with storage.opened(second) as file:
        assert storage.read_file(first) == content[::-1]
        assert (file.seek(50_000), file.read(10)) == (50_000, content[50_000:50_010])
        assert storage.read_range(first, 99_990, 100) == content[:10][::-1]
        assert (file.seek(-20, 2), file.read()) == (99_980, content[-20:])
        assert (file.seek(10), file.tell(), file.read(5)) == (10, 10, content[10:15])
    with pytest.raises(FileNotFoundError), storage.opened(f"{second}.absent"):
        pass
    if compression == zipfile.ZIP_STORED:
        with storage.opened(second) as file, pytest.raises(OSError, match="Invalid argument"):
            file.seek(-100_001, 2)
    damaged = bytearray((tmp_path / "x.zip").read_bytes())
    damaged[:2] = b"xx"  # the header of the first file
    (tmp_path / "y.zip").write_bytes(damaged)
    with pytest.raises(OSError, match="magic number"):
        storage.read_range(f"zip://first::{tmp_path / 'y.zip'}", 0, 10)


# Bugs caught: the folder that was packed taken for a class, and the one that macOS adds.
def test_a_zip_file_is_read_as_the_folder_in_it(places, tmp_path):
    local, archive = places["local"]("images"), tmp_path / "photos.ZIP"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("__MACOSX/photos/._00.JPEG", b"x")
        for name in storage.remote_files_below(f"file://{local}"):
            zipped.write(f"{local}/{name}", f"photos/{name}")
    kind = recognize(str(archive)).kind
    here, there = (open_source(Data(kind=kind, path=path)) for path in (local, str(archive)))
    assert (kind, fingerprint(there)) == ("class_folders", fingerprint(here))
    assert there.class_names == here.class_names
    there = pickle.loads(pickle.dumps(there))  # as crop processes get it
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there.read, range(16))) == [here.read(i) for i in range(16)]
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("photos/2024/1.jpg", b"x")
        zipped.writestr("photos/read.me", b"x")
    assert recognize(str(archive)).kind == "images"  # one folder is no class
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match="must be a zip file"):
        recognize(str(archive))


@pytest.mark.parametrize("place", ["local", "memory", "zip"])
def test_patterns_and_guesses(places, place):
    path = places[place]
    assert len(open_source(Data(kind="tfrecord", path=path("foreign/*-0000[01]-of-*")))) == 10
    guesses = {
        "foreign": "tfrecord",
        "shards/images-*": "tfrecord",
        "images": "class_folders",
        "images/b": "images",
    }
    for name, kind in guesses.items():
        assert recognize(path(name)).kind == kind


def test_remote_images_are_packed_locally(places, tmp_path):
    write_shards(ClassFolders(places["memory"]("images")), tmp_path / "out", shards=3)
    for path in (tmp_path / "out").glob("*.tfrecord"):
        assert path.read_bytes() == storage.read_file(places["local"](f"shards/{path.name}"))
    with pytest.raises(UsageError):
        write_shards(ClassFolders(places["memory"]("images")), "memory://out")


def test_the_package_of_a_scheme_is_named():
    fsspec.register_implementation(
        "absent", "no_such_package.FileSystem", errtxt="Install no-such-package", clobber=True
    )
    with pytest.raises(DataError, match=r"absent://bucket/train.*Install no-such-package"):
        open_source(Data(kind="tfrecord", path="absent://bucket/train"))
    with pytest.raises(DataError, match=r"unheard://x.*not known"):
        recognize("unheard://x")


def test_missing_and_forbidden_files(places, monkeypatch):
    with pytest.raises(DataError, match="memory://nowhere"):
        ImageFolder("memory://nowhere")
    source = ImageFolder(places["memory"]("images"))
    memory = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(memory, "store", {})
        with pytest.raises(FileNotFoundError, match="memory://places/images/"):
            source.read(3)

    class ClientError(Exception):
        pass

    def no_access(path, **_):
        raise ClientError("no access")

    monkeypatch.setattr(memory, "info", no_access)
    for kind in ("class_folders", "tfrecord"):
        with pytest.raises(DataError, match="ClientError: no access"):
            open_source(Data(kind=kind, path=places["memory"]("images")))
