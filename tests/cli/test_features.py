"""`features`, `knn`, `clusters`, `similar` and `plot`."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from cli import progress
from evaluate.feature_file import read_feature_file
from tests.cli.command_line import TENSORFLOW, run_without, write_noise
from tests.evaluate.exported import write_onnx
from tests.evaluate.models import assert_same_features


# Bugs caught: options that do not reach the extraction, JSON among other lines.
def test_features(model, tmp_path, output):
    file = tmp_path / "new" / "x.parquet"
    line = f"features digits --split test --model {model} --output {file}"
    result = json.loads(output(f"{line} --batch 64 --threads 2 --json"))
    assert (result["output"], result["images"], result["unreadable"]) == (str(file), 360, 0)
    assert result["images_per_second"] > 0
    assert len(read_feature_file(file).names) == 360
    again = output(line)
    assert f"{file}: 360 images x {result['feature_dim']} features\n360 of the images were" in again


# Bugs caught: unreadable images that fail the command, or that shift names and labels of the others.
def test_features_of_a_folder_with_an_unreadable_image(model, tmp_path, output, refused):
    images = write_noise(tmp_path / "images", [f"{'ab'[number % 2]}/{number}.jpg" for number in range(12)])
    (images / "a" / "0.jpg").write_bytes(b"no image")
    line = f"features {images} --model {model} --output {tmp_path / 'x.npz'} --quiet"
    refused(f"{line} --max-bad-share 0", 1, "1 of 12 images cannot be read")
    assert "1 unreadable image skipped" in output(line)
    with np.load(tmp_path / "x.npz") as file:
        assert file["features"].shape[0] == 11
        assert sorted(file["labels"].tolist()) == [0] * 5 + [1] * 6


# Bugs caught: parts that commands do not take for one file; a missing part that is not named, or by a command that fails.
def test_parts(model, files, tmp_path, output, run, refused):
    line = f"features digits --split test --model {model} --output {tmp_path}/parts"
    assert f"{tmp_path}/parts, part 2/2: 232 images" in output(f"{line} --part 2/2")
    refused(f"knn {files}/train.npy {tmp_path}/parts", 1, "part 1/2 is missing")
    checked = run(f"features {tmp_path}/parts --check")
    missing, command, total = checked.out.splitlines()
    assert (checked.code, missing, total) == (
        1,
        "part 1/2 is missing",
        f"{tmp_path}/parts: 1 of 2 parts are complete",
    )
    output(command.removeprefix("  swav-tf "))
    assert output(f"features {tmp_path}/parts --check") == f"{tmp_path}/parts: 2 of 2 parts are complete\n"
    one, parts = (
        json.loads(output(f"knn {files}/train.npy {x} --json"))
        for x in (f"{files}/test.npz", f"{tmp_path}/parts")
    )
    assert one["knn"] == parts["knn"]
    output(f"features {tmp_path}/parts --output {tmp_path}/x.npz")
    with np.load(files / "test.npz") as expected, np.load(tmp_path / "x.npz") as exported:
        for name in ("features", "labels", "names", "index"):
            np.testing.assert_array_equal(exported[name], expected[name])
    refused(f"{line}.npz --part 1/2", 2, "need a folder")


# Bugs caught: a process that gets other options, figures of one part for those of all, another number of parts when the
# command is repeated; options that are ignored.
@pytest.mark.multiprocess
def test_parts_by_several_processes(tmp_path, output, refused, monkeypatch):
    write_onnx(tmp_path / "x.onnx", "fp32", weights="a" * 64)
    line = f"features digits --split test --model {tmp_path}/x.onnx --batch 64 --output {tmp_path}"
    output(f"{line}/whole.npy")
    first = json.loads(output(f"{line}/parts --devices cpu:2 --parts 3 --json"))
    assert (first["images"], first["images_before"], first["part"]) == (360, 0, None)
    assert "parts, 3 parts: 360 images" in output(f"{line}/parts --devices cpu:1")
    assert_same_features(read_feature_file(tmp_path / "parts"), read_feature_file(tmp_path / "whole.npy"))
    refused(f"{line}/parts --devices cpu:1 --parts 4", 2, "Error: ", "parts: was 3, now 4")
    refused(f"{line}/x --parts 3", 2, "--parts and --on need --devices")
    folder = f"features {tmp_path}/parts"
    refused(
        f"{folder} --output {tmp_path}/all.npz --batch 3 --kind images",
        2,
        "--kind, --batch: cannot be used where",
    )
    refused(f"{folder} --check --output {tmp_path}/all.npz", 2, "--output: cannot be used with --check")
    refused(f"{line}/x.npy --devices cpu:2", 2, "need a folder")
    refused(f"{line}/x --devices 2", 2, "must be cpu:N or gpu:N")
    refused(f"{line}/x --devices cpu:2 --part 1/2", 2, "--devices computes all parts. Received: 1/2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    refused(f"{line}/x --devices gpu:2", 2, "needs --provider cuda or tensorrt")
    refused(f"{line}/x --devices cpu:2 --provider cuda", 2, "--devices cpu:2 computes on CPUs")


# Bugs caught: parts next to the images that are exported in place of the model's features; parts among the images; a
# folder named `-`.
def test_images_next_to_parts(tmp_path, output, refused):
    images = write_noise(tmp_path / "images", ["0.png", "1.png"])
    write_onnx(tmp_path / "x.onnx", "fp32", weights="a" * 64)
    line = f"features {images} --kind images --model {tmp_path}/x.onnx --output"
    refused(f"{line} {images}", 2, "another place than the images")
    refused(f"{line} -", 2, "does not write to stdout")
    output(f"{line} {tmp_path}/parts")
    for path in (tmp_path / "parts").iterdir():
        path.rename(images / path.name)
    write_noise(images, ["2.png"])
    assert "x.npz: 3 images" in output(f"{line} {tmp_path}/x.npz")
    assert "y.npz: 2 images" in output(f"features {images} --output {tmp_path}/y.npz")


# Bugs caught: train and test swapped, another k or temperature than requested.
def test_knn(files, output):
    line = f"knn {files}/train.npy {files}/test.npz"
    result = json.loads(output(f"{line} -k 50,5 --temperature 0.5 --json"))
    assert (result["train_images"], result["test_images"], result["temperature"]) == (1437, 360, 0.5)
    assert list(result["knn"]) == ["5", "50"]
    assert 0.4 < result["knn"]["5"]["top1"] <= result["knn"]["5"]["top5"] <= 1
    table = output(line)
    assert "the 360 images in" in table
    assert "by the votes of the 1,437 in" in table
    assert [line.split()[1] for line in table.splitlines() if "%" in line] == ["10", "20", "100", "200"]


# Bug caught: a default that refuses small sets, or that replaces a number which was given.
def test_defaults_fit_small_sets(model, files, tmp_path, output, refused):
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for name in ("few", "asked"):
        np.savez(tmp_path / f"{name}.npz", features=features, labels=np.arange(30) % 2)
    line = f"knn {tmp_path}/few.npz {tmp_path}/asked.npz"
    assert list(json.loads(output(f"{line} --json"))["knn"]) == ["10", "20"]
    refused(f"{line} -k 100", 2, "from 1 to the number of images that vote, 30")


# Bug caught: a missing file, or a table that lists only the prototypes shown.
def test_clusters(model, tmp_path, output):
    line = f"clusters digits --split test --model {model} --output {tmp_path}/c"
    assert "of 12 prototypes used" in output(f"{line} --prototypes 3 --nearest 4")
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {"index.html", "clusters.json", "usage.csv", "assignments.csv"}
    document = json.loads((tmp_path / "c" / "clusters.json").read_text())
    assert sum(row["images"] for row in document["usage"]) == document["images"] == 360
    assert len(document["usage"]) == 12
    assert json.loads(output(f"{line} --json"))["usage"] == document["usage"]


# Bug caught: neighbors of another image.
def test_similar(model, files, tmp_path, output):
    line = f"similar {files}/digit.png --features {files}/test.npz --model {model} -k 3 --output {tmp_path}/x.png"
    near = json.loads(output(f"{line} --json"))["similar"]
    assert (near[0]["index"], len(near)) == (17, 3)
    assert near[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert near[0]["name"] in output(line)
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 20


# Bugs caught: --memory without effect; an index that finds another image, or that needs the place of its features.
def test_index(model, files, tmp_path, output, refused):
    pytest.importorskip("faiss")
    output(f"features digits --split test --model {model} --output {tmp_path}/parts --quiet")
    line = f"index {tmp_path}/parts --output {tmp_path}/x.index"
    refused(f"{line} --memory 8", 2, "a size such as 8GiB")
    refused(f"{line} --memory 1KB", 2, "needs more --memory")
    refused(f"{line} --memory 1.2.3GiB", 2, "a size such as 8GiB")
    facts = json.loads(output(f"{line} --memory 1MiB --json"))
    assert (facts["images"], facts["factory"]) == (360, "IVF5,SQfp16")
    assert facts["recall_at_10"] >= 0.99
    line = (
        f"similar {files}/digit.png --index {tmp_path}/x.index --model {model} -k 3 --output {tmp_path}/x.png"
    )
    assert json.loads(output(f"{line} --json"))["similar"][0]["index"] == 17
    refused(line.replace("--index", "--features"), 2, "must end in")
    refused(f"similar {files}/digit.png --model {model}", 2, "Missing option '--features' or '--index'")


# Bug caught: a default k that few images refuse.
def test_similar_shows_all_of_few_images(model, tmp_path, run):
    images = write_noise(tmp_path / "few", ["a.png", "b.png", "c.png"])
    features = f"{tmp_path}/few.npz"
    run(f"features {images} --kind images --model {model} --output {features} --quiet")
    line = f"similar {images}/a.png --features {features} --model {model} --output {tmp_path}/x.png --json"
    found = run(line)
    assert {near["name"] for near in json.loads(found.out)["similar"]} == {"a.png", "b.png", "c.png"}
    assert "has 3 images: all are shown" in found.err


# Bugs caught: --threshold, --groups or --count without effect; a table that lists only what is shown.
def test_duplicates_and_outliers(files, tmp_path, output):
    line = f"duplicates {files}/test.npz --output {tmp_path}/d"
    loose, strict = (json.loads(output(f"{line} --threshold {x} --groups 2 --json")) for x in (0.9, 0.9999))
    assert loose["images"] > strict["images"]
    assert "a tenth of the usual distance" in output(line)
    assert "groups of" in output(f"{line} --threshold 0.9 --groups 2")
    assert len((tmp_path / "d" / "duplicates.csv").read_text().splitlines()) == 1 + loose["images"]
    assert (tmp_path / "d" / "index.html").read_text().count("<article>") == 2
    line = f"outliers {files}/test.npz --output {tmp_path}/o --count 5"
    assert len(json.loads(output(f"{line} --json"))["outliers"]) == 5
    assert "outliers.csv" in output(line)


# Bug caught: --method or --limit without effect.
def test_plot(files, tmp_path, output):
    picture = tmp_path / "x.png"
    line = f"plot {files}/test.npz --output {picture} --limit 50"
    assert output(line) == f"{picture}: 50 of 360 images\n"
    first = picture.read_bytes()
    output(f"{line} --method tsne")
    assert picture.read_bytes() != first


# Bugs caught: a traceback, the wrong exit code, a file that is written in spite of the error.
@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("features digits --model nowhere --output x.npz", 2, "nowhere, which does not exist"),
        ("features digits --model {files} --output x.npz", 2, "a folder without config.yaml"),
        ("features digits --model {model} --output x.csv", 2, "must end in .npz, .npy or .parquet"),
        ("features digits --model {model}", 2, "Missing option '--output'"),
        ("features empty --kind images --model {model} --output x.npz", 1, "is empty"),
        ("features gone --kind images --model {model} --output x.npz", 1, "gone. Check the path"),
        (
            "features digits --model {model} --output {files}/train.npy --split test",
            2,
            "with other settings",
        ),
        (
            "features digits --model x --output x.npz --view 8,8 --mean nan,0,0",
            2,
            "must be three numbers, for",
        ),
        ("features digits --model x --output x.npz --view 8,8 --std 0,1,1", 2, "must be three numbers > 0"),
        ("knn gone.npz {files}/test.npz", 2, "Feature file not found"),
        ("knn {files}/digit.png {files}/test.npz", 2, "must end in"),
        ("knn {files}/train.npy {files}/unlabeled.npz", 1, "needs labels"),
        ("knn {files}/train.npy {files}/text.npz", 1, "It cannot be read"),
        ("clusters digits --model {model} --output {files}/test.npz", 2, "--output must be a folder"),
        ("similar gone.png --features {files}/test.npz --model {model}", 2, "No such file"),
        ("similar {files}/test.npz --features {files}/test.npz --model {model}", 1, "must be an image"),
        (
            "similar {files}/digit.png --features {files}/narrow.npz --model {model}",
            2,
            "must come from the same model",
        ),
        ("plot {files}/test.npz --output x.txt", 2, "A picture must end in"),
    ],
)
def test_refusals(line, code, part, model, files, tmp_path, monkeypatch, refused):
    np.savez(files / "narrow.npz", features=np.ones((9, 3), np.float32), labels=np.zeros(9, np.int64))
    with np.load(files / "test.npz") as file:
        np.savez(files / "unlabeled.npz", features=file["features"])
    (files / "text.npz").write_text("text")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(line.format(model=model, files=files), code, part)
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


# Bug caught: hours of work before the message that the output cannot be written.
def test_parquet_needs_its_package(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    refused("features digits --model nowhere --output x.parquet", 1, "pip install 'swav-tf[parquet]'")


# Bug caught: a speed that counts the images of an earlier call, or a log without progress.
def test_progress_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    clock = iter([0.0, 1.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with progress.image_progress(1000, "features", quiet=False) as done:
        done(400)
        done(700)
        done(0, "checked")  # a second stage has a speed of its own
        done(200, "checked")
    assert capsys.readouterr().err == (
        "features 700/1,000  150 images/s  0:00:02 left\nchecked 200/1,000  50 images/s  0:00:16 left\n"
    )


# Bug caught: a command on feature files that needs TensorFlow, which a server does not have.
@pytest.mark.multiprocess
def test_feature_files_need_no_tensorflow(files, tmp_path):
    lines = (
        f"knn {files}/train.npy {files}/test.npz --json",
        f"plot {files}/test.npz --output {tmp_path}/x.png",
    )
    result = run_without(TENSORFLOW, *lines)
    assert result.code == 0, result.err


# Bugs caught: a run whose images or checkpoint are not found, pictures that are left out without a word.
def test_report(model, tmp_path, run):
    ended = run(f"report {model} --output {tmp_path}/page.html --limit 20 --json")
    assert (ended.code, json.loads(ended.out)) == (0, {"page": f"{tmp_path}/page.html", "missing": ""})
    page = (tmp_path / "page.html").read_text()
    for heading in ("Training", "Prototypes", "Nearest neighbors", "Map of the features", "Crops", "The run"):
        assert f"<h2>{heading}</h2>" in page
