import asyncio
import io
import threading
from concurrent.futures import Future

import httpx
import numpy as np
import pytest
from PIL import Image

from evaluate.feature_file import FeatureFile, read_feature_file, write_feature_file
from evaluate.feature_parts import Part
from evaluate.features import extract_features
from evaluate.search import build_index, open_index
from evaluate.serve.batcher import Batcher
from evaluate.serve.gallery import Gallery, searchable
from evaluate.serve.service import NPY, Limits, Service
from evaluate.similar import similar_images
from swav_tf.data.decode import decode, evaluation_view
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.models import FEATURES, NumpyBackend, class_folders

DRAW = np.random.default_rng(3)


def encoded(height=12, width=10, kind="png"):
    file = io.BytesIO()
    Image.fromarray(DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


PNG = encoded()


def exchange(talk, model=None, gallery=None, **limits):
    """Return what `talk(client, service)` returns."""
    service = Service(model or NumpyBackend(), Limits(**limits), gallery=gallery, threads=2)

    async def run():
        transport = httpx.ASGITransport(service, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:
            return await talk(client, service)

    try:
        return asyncio.run(run())
    finally:
        service.close()


def post(client, *files, path="/features", **headers):
    """A request with one image as its body, or with several files."""
    if len(files) == 1:
        return client.post(path, content=files[0], headers={"Content-Type": "image/png", **headers})
    parts = [("images", (f"{number}.png", file)) for number, file in enumerate(files)]
    return client.post(path, files=parts, headers=headers)


def metric(text, name):
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))


# Bugs caught: rows of one request in another's answer, in another order, or batches beyond the largest.
def test_concurrent_requests_get_their_own_features():
    images = [
        [encoded(8 + n, 20 - n, "jpeg" if n % 2 else "png") for _ in range(1 + n % 4)] for n in range(12)
    ]
    model = NumpyBackend()

    async def talk(client, service):
        return await asyncio.gather(*(post(client, *files) for files in images))

    for files, answer in zip(images, exchange(talk, model, batch=5, wait_ms=20), strict=True):
        assert answer.status_code == 200
        assert len(answer.json()["names"]) == len(files)
        np.testing.assert_allclose(answer.json()["features"], NumpyBackend().features(files), atol=1e-5)
    assert sum(model.batches) == sum(map(len, images))
    assert 1 < max(model.batches) <= 5


def test_json_and_npy_are_the_same_float32():
    async def talk(client, service):
        return await post(client, PNG, PNG), await post(client, PNG, PNG, Accept=NPY)

    as_json, as_npy = exchange(talk, batch=1)  # batches of other sizes may differ in the last bit
    assert as_json.json()["names"] == ["0.png", "1.png"]
    features = np.load(io.BytesIO(as_npy.content))
    assert (features.dtype, features.shape) == (np.float32, (2, FEATURES))
    assert np.array_equal(np.float32(as_json.json()["features"]), features)


@pytest.mark.parametrize(
    ("files", "headers", "status", "reason", "sentence"),
    [
        ([PNG], {"Content-Type": "text/plain"}, 415, "type", "Content-Type must be image/..."),
        ([PNG[:-20]], {}, 400, "unreadable", "image must be an image. Received: corrupt or truncated PNG"),
        ([b"GIF89a"], {}, 400, "unreadable", "image must be an image"),
        ([PNG, b"", PNG], {}, 400, "unreadable", "1.png must be an image. Received: the file is empty"),
        ([b"\0" * 5001], {}, 413, "body", "must have at most 5,000 bytes"),
        ([encoded(21, 10)], {}, 413, "pixels", "must have at most 200 pixels"),
        ([PNG] * 4, {}, 413, "images", "must contain 1 to 3 files"),
        ([PNG], {"Content-Type": "multipart/form-data"}, 400, "multipart", "Missing boundary"),
        ([], {"Content-Type": "multipart/form-data; boundary=a"}, 400, "multipart", "must contain 1 to 3 files"),
    ],
)  # fmt: skip
def test_refusals_say_what_must_hold(files, headers, status, reason, sentence):
    async def talk(client, service):
        return await post(client, *files, **headers), await post(client, PNG), await client.get("/metrics")

    refused, after, metrics = exchange(talk, body=5000, pixels=200, images=3, queue=3)
    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/json")
    assert sentence in refused.json()["error"]
    assert metric(metrics.text, f'swav_errors_total{{reason="{reason}"}}') == 1
    assert metric(metrics.text, "swav_queue_images") == 0
    assert after.status_code == 200


# Bug caught: a body that was cut off, answered for the images before.
@pytest.mark.parametrize("missing", [3, 50])
def test_a_multipart_body_needs_its_end(missing):
    body = b"".join(
        b'--a\r\nContent-Disposition: form-data; name="i"; filename="%d.png"\r\n\r\n%s\r\n' % (number, PNG)
        for number in range(2)
    )
    headers = {"Content-Type": "multipart/form-data; boundary=a"}

    async def talk(client, service):
        whole = body + b"--a--"
        return [await client.post("/features", content=c, headers=headers) for c in (whole, whole[:-missing])]

    complete, cut = exchange(talk)
    assert (complete.status_code, complete.json()["names"]) == (200, ["0.png", "1.png"])
    assert cut.status_code == 400
    assert "without its closing boundary" in cut.json()["error"]


# Bug caught: a body without Content-Length that is read to its end.
def test_a_body_of_unknown_length_is_read_to_the_limit():
    sent = []

    async def endless():
        while True:
            sent.append(1000)
            yield bytes(1000)

    async def talk(client, service):
        return await client.post("/features", content=endless(), headers={"Content-Type": "image/png"})

    assert exchange(talk, body=5000).status_code == 413
    assert sum(sent) <= 7000


@pytest.fixture
def held():
    """A model whose first batch waits, and what releases it."""
    release, model = threading.Event(), NumpyBackend(stop_after=0)

    def wait():
        release.wait()
        model.stop_after = None

    model.stop = wait
    return model, release


async def waiting(client, images):
    while metric((await client.get("/metrics")).text, "swav_queue_images") != images:
        await asyncio.sleep(0)


def test_a_full_queue_refuses_and_recovers(held):
    model, release = held

    async def talk(client, service):
        accepted = [asyncio.create_task(post(client, PNG, PNG)) for _ in range(2)]
        await waiting(client, 4)
        refused, health = await post(client, PNG), await client.get("/health")
        release.set()
        return refused, health, await asyncio.gather(*accepted), await post(client, PNG)

    refused, health, answers, after = exchange(talk, model, queue=4, images=2)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "At most 4 images may wait" in refused.json()["error"]
    assert health.status_code == 200
    assert [answer.status_code for answer in [*answers, after]] == [200, 200, 200]


# Bug caught: a canceled request whose row ends the model's thread.
def test_a_request_that_is_given_up_harms_no_other(held):
    model, release = held

    async def talk(client, service):
        given_up = asyncio.create_task(post(client, PNG))
        await waiting(client, 1)
        given_up.cancel()
        await waiting(client, 0)
        release.set()
        return await post(client, PNG)

    assert exchange(talk, model).status_code == 200


# Bugs caught: a failed batch that ends the model's thread; a message of the machine in the answer; a service that is ready
# but fails.
def test_a_failure_of_the_model_is_answered_and_seen(logged):
    model = NumpyBackend(stop_after=0)

    def fail():
        raise RuntimeError("out of memory on /dev/secret")

    model.stop = fail

    async def talk(client, service):
        answers = [await post(client, PNG), await client.get("/health")]
        model.stop_after = None  # it has recovered
        return [*answers, await client.get("/health"), await post(client, PNG)]

    failed, failing, healthy, after = exchange(talk, model)
    assert failed.status_code == 500
    assert failed.json() == {"error": "The model failed; see the server's log."}
    assert ("ERROR", "1 images could not be computed: out of memory on /dev/secret") in logged
    assert (failing.status_code, failing.json()["status"]) == (503, "failing")
    assert (healthy.status_code, after.status_code) == (200, 200)


# Bug caught: an image whose features overflow fails the requests that share its batch.
def test_a_failure_is_that_of_its_image_alone():
    def compute(images):
        if images.max() == 255:
            raise DataError("not finite")
        return images[:, 0, 0]

    levels, rows = (7, 255, 9), [Future() for _ in range(3)]
    batcher = Batcher(compute, most=3, wait_seconds=5)
    for level, row in zip(levels, rows, strict=True):
        batcher.submit(np.full((2, 2, 3), level, np.uint8), row)
    assert isinstance(rows[1].exception(timeout=20), DataError)
    assert [rows[number].result(timeout=20)[0] for number in (0, 2)] == [7, 9]
    batcher.close()


# Bug caught: `null` in place of features, with status 200.
def test_features_that_are_not_finite(logged):
    model = NumpyBackend()
    model.kernel[0, 0] = np.nan

    async def talk(client, service):
        return await post(client, PNG)

    assert exchange(talk, model).status_code == 500


def test_a_bug_is_answered_without_a_traceback(monkeypatch, logged):
    monkeypatch.setattr(Service, "_view", lambda *_: 1 / 0)
    answer = exchange(lambda client, service: post(client, PNG))
    assert (answer.status_code, answer.json()) == (500, {"error": "The server failed; see its log."})
    assert ("ERROR", "POST /features failed.") in logged


def test_health_and_other_paths():
    async def talk(client, service):
        ready, lost, wrong = [await client.get(path) for path in ("/health", "/nothing", "/features")]
        service.stop()
        return ready, lost, wrong, await client.get("/health"), await post(client, PNG)

    ready, lost, wrong, stopping, last = exchange(talk)
    assert ready.json()["status"] == "ready"
    assert (ready.json()["dimension"], ready.json()["view"]) == (
        FEATURES,
        NumpyBackend.input_view.model_dump(),
    )
    assert ready.json()["model"]["weights_sha256"] == "a" * 64
    assert (lost.status_code, wrong.status_code) == (404, 405)
    assert "Paths: /features, /health, /metrics" in lost.json()["error"]
    assert (stopping.status_code, stopping.json()["status"]) == (503, "stopping")
    assert (last.status_code, last.headers["connection"]) == (200, "close")


def test_metrics():
    async def talk(client, service):
        await post(client, PNG, PNG, PNG)
        await client.get("/a/path/of/a/scanner")
        return (await client.get("/metrics")).text

    text = exchange(talk, batch=3, wait_ms=60_000)
    assert metric(text, 'swav_requests_total{code="200",path="/features"}') == 1
    assert metric(text, 'swav_requests_total{code="404",path="other"}') == 1
    assert metric(text, "swav_images_total") == 3
    assert metric(text, 'swav_batch_images_bucket{le="2.0"}') == 0
    assert metric(text, 'swav_batch_images_bucket{le="3.0"}') == 1
    assert metric(text, 'swav_request_seconds_count{path="/features"}') == 1


def test_a_queue_too_short_for_a_request_is_refused():
    with pytest.raises(UsageError, match=r"must hold the images of one request, 64\. Received: 10"):
        Service(NumpyBackend(), Limits(queue=10))


# === Similar images ===


@pytest.fixture
def searched(folders, tmp_path):
    """A feature file of 20 images below `folders`, and of one outside."""
    model, names = NumpyBackend(), sorted(str(path.relative_to(folders)) for path in folders.glob("*/*.png"))
    (tmp_path / "secret.png").write_bytes(PNG)
    names.append("../secret.png")
    features = model.features([folders / name for name in names])
    path = tmp_path / "searched.npz"
    write_feature_file(
        FeatureFile(path, features, np.arange(21) % 2, np.arange(21), names, {"class_names": ["a", "b"]})
    )
    return path


def test_similar_images_are_those_of_the_command(searched):
    images = [encoded(9 + n, 9) for n in range(3)]

    async def talk(client, service):
        return [
            await post(client, *images, path="/similar?k=21"),
            await post(client, PNG, path="/similar"),
            *[await post(client, PNG, path=f"/similar?k={k}") for k in ("0", "22", "9" * 5000, "many")],
        ]

    answer, usual, *refused = exchange(talk, gallery=Gallery(searchable(searched), NumpyBackend()))
    for image, found in zip(images, answer.json()["similar"], strict=True):
        view = evaluation_view(decode(image), NumpyBackend.input_view)
        wanted = similar_images(view, read_feature_file(searched), NumpyBackend(), k=21)
        assert [near["name"] for near in found] == [near["name"] for near in wanted]
        np.testing.assert_allclose(
            [near["cosine"] for near in found], [near["cosine"] for near in wanted], atol=1e-6
        )
        assert {near["class"] for near in found} == {"a", "b"}
    assert len(usual.json()["similar"][0]) == 10
    assert [other.status_code for other in refused] == [400] * 4
    assert refused[3].json()["error"] == "k must be a whole number from 1 to 21. Received: many."


# Bug caught: a file that is not of the feature file, or not below the folder.
def test_only_images_of_the_feature_file_below_the_folder_are_shown(searched, folders):
    paths = ["/images/0", "/images/13", "/images/20", "/images/21", "/images/-1", "/images/cat/00.png", "/"]

    async def talk(client, service):
        return [await client.get(path) for path in paths]

    shown = exchange(talk, gallery=Gallery(searchable(searched), NumpyBackend(), folders))
    assert [answer.status_code for answer in shown] == [200, 200, 404, 404, 404, 404, 200]
    assert Image.open(io.BytesIO(shown[0].content)).size == (NumpyBackend.input_view.crop,) * 2
    assert "Drop an image" in shown[-1].text
    hidden = exchange(talk, gallery=Gallery(searchable(searched), NumpyBackend()))
    assert [answer.status_code for answer in hidden] == [404] * 6 + [200]
    assert "no such row" in hidden[0].json()["error"]


# Bug caught: the picture of another row, or neighbors other than those of the index.
def test_an_index_is_searched_and_its_images_are_shown(folders, tmp_path):
    pytest.importorskip("faiss")
    model, image = NumpyBackend(), (folders / "cat" / "07.png").read_bytes()
    extract_features(model, class_folders(folders), Part(tmp_path / "parts", 1, 1))
    build_index(tmp_path / "parts", tmp_path / "x.index")

    async def talk(client, service):
        [found] = (await post(client, image, path="/similar?k=3")).json()["similar"]
        return found, await client.get(f"/images/{found[0]['row']}")

    index = open_index(tmp_path / "x.index")
    found, picture = exchange(talk, gallery=Gallery(index, model, folders))
    wanted = similar_images(evaluation_view(decode(image), model.input_view), index, model, k=3)
    assert [near["name"] for near in found] == [near["name"] for near in wanted]
    assert found[0]["name"] == "cat/07.png"
    view = evaluation_view(decode(image), model.input_view)
    assert np.abs(np.float32(Image.open(io.BytesIO(picture.content))) - view).mean() < 40


def test_feature_files_of_other_models_or_damaged_are_refused(searched):
    file = read_feature_file(searched)
    other = {"model": {"weights_sha256": "b" * 64}}
    write_feature_file(FeatureFile(searched, file.features, file.labels, file.index, file.names, other))
    with pytest.raises(UsageError, match="come from the same model"):
        Gallery(searchable(searched), NumpyBackend())
    file.features[3, 2] = np.nan
    write_feature_file(file)
    with pytest.raises(DataError, match=r"Features must be finite\. Received: 1 rows"):
        Gallery(searchable(searched), NumpyBackend())
