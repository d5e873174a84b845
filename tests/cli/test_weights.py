"""`weights show`, `weights import` and `weights export`, and what other commands do with an import."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from swav_tf.training.build import load_swav
from swav_tf.weights.files import open_weights
from swav_tf.weights.layout import Sizes, slots
from swav_tf.weights.torch_files import write_torch_file

SLOTS = slots(Sizes("resnet_small", head=(24, 16), prototypes=12))
MODEL = "resnet_small, 128 features, head 24 -> 16, 12 prototypes"
DIGITS = "-o data.kind=digits -o data.evaluation.resize=32 -o data.evaluation.crop=32"


class Hostile:
    """An object that runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Write good, incomplete, cut off and hostile files into the working directory."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    good = {f"module.{slot.torch}": draw.uniform(0.1, 0.5, slot.shape).astype(np.float32) for slot in SLOTS}
    write_torch_file(good, tmp_path / "good.pth")
    backbone = {name: array for name, array in good.items() if ".pro" not in name}
    write_torch_file(backbone, tmp_path / "backbone.pth")
    short = {name: array for name, array in good.items() if "prototypes" not in name}
    write_torch_file(short, tmp_path / "short.pth")
    linear = {"linear.weight": np.ones((5, 128), np.float32), "linear.bias": np.ones(5, np.float32)}
    write_torch_file(linear, tmp_path / "linear.pth")
    write_torch_file({"layers.0.w": np.zeros(3, np.float32)}, tmp_path / "unknown.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:5000])
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    return tmp_path


# Bugs caught: options without effect, JSON among other lines, an import that other commands cannot use.
def test_import_and_export(folder, output):
    numbers = sum(int(np.prod(slot.shape)) for slot in SLOTS)
    assert output("weights show good.pth") == (
        f"good.pth: SwAV as released\n{MODEL}; {len(SLOTS)} tensors, {numbers:,} numbers\n"
    )
    printed = output(f"weights import good.pth --to runs/a {DIGITS}")
    assert printed == f"good.pth: SwAV as released\nruns/a: {MODEL}\n"
    assert json.loads(output("weights show runs/a --json"))["model"] == MODEL
    document = json.loads(output("weights import good.pth --to b.safetensors --json"))
    assert (document["output"], document["recipe"]) == ("b.safetensors", None)
    output("weights export runs/a --output c.pth.tar")
    counters = sum(slot.torch.endswith("running_var") for slot in SLOTS)
    document = json.loads(output("weights export b.safetensors --output d.pth --json"))
    assert (document["names"], document["tensors"]) == ("swav", len(SLOTS) + counters)
    assert (folder / "c.pth.tar").read_bytes() == (folder / "d.pth").read_bytes()
    printed = output("weights export runs/a --output e.pt --to torchvision")
    assert "left out: projection_head (8), prototypes (1)" in printed
    made = json.loads(output("features --split test --model runs/a --output f.npz --quiet --json"))
    assert made["feature_dim"] == 128


# Bugs caught: a file that needs swav-tf, pixels that are normalized twice or not at all, running averages left behind.
@pytest.mark.multiprocess
def test_networks_for_keras_and_tensorflow_serving(folder, output):
    output("weights export good.pth --output a.keras")
    output("weights export good.pth --to savedmodel --output served/1")
    output(f"weights import good.pth --to run {DIGITS}")
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 36, 3), dtype=np.uint8)
    model, _ = load_swav("run")
    np.savez("expected.npz", images=images, features=model.features(images))
    code = """
import sys, keras, numpy as np, tensorflow as tf
expected = np.load("expected.npz")
served = tf.saved_model.load("served/1").signatures["serving_default"](tf.constant(expected["images"]))
for found in (keras.models.load_model("a.keras")(expected["images"]), *served.values()):
    np.testing.assert_allclose(found, expected["features"], rtol=1e-4, atol=1e-5)
assert "swav_tf" not in sys.modules and len(served) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)


# Bugs caught: torchvision's classifier left out; a user who wants features and gets neither them nor the way to them.
def test_a_supervised_network_is_a_probe(folder, output, refused):
    state = {slot.torch: np.full(slot.shape, 0.3, np.float32) for slot in slots(Sizes("resnet_small"))}
    state |= {"fc.weight": np.ones((5, 128), np.float32), "fc.bias": np.ones(5, np.float32)}
    write_torch_file(state, folder / "supervised.pth")
    printed = output("weights import supervised.pth --to probe")
    assert "128 features, linear classifier of 5 classes\nFor features and pretraining import its" in printed
    refused(
        "features . --kind images --model probe --output f.npz",
        2,
        "Import its backbone: swav-tf weights import",
    )
    output("weights import supervised.pth --to backbone --backbone-only")


# Bug caught: a folder whose tensors or facts timm and KerasHub do not find. (That both give equal features was checked.)
def test_a_folder_for_timm(folder, output):
    draw, sizes = np.random.default_rng(0), Sizes("resnet18")
    state = {slot.torch: draw.uniform(0.1, 0.5, slot.shape).astype(np.float32) for slot in slots(sizes)}
    write_torch_file(state, folder / "r18.pth")
    output("weights export r18.pth --to timm --output timm")
    config = json.loads((folder / "timm" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("resnet18", 0)
    assert config["pretrained_cfg"]["std"] == [0.229, 0.224, 0.225]
    found = open_weights(folder / "timm" / "model.safetensors").arrays
    assert all(np.array_equal(found[name], array) for name, array in state.items())


# Bugs caught: a backbone that is given random prototypes, or that cannot compute features; incomplete weights that
# `show` accepts and `import` refuses.
def test_incomplete_weights(output, refused, folder):
    printed = output("weights show short.pth")
    assert "  missing    prototypes.weight (1, 16)\nThese weights are incomplete" in printed
    problems = json.loads(output("weights show short.pth --json"))["problems"]
    assert problems == ["missing    prototypes.weight (1, 16)"]
    printed = output(f"weights import short.pth --to run --backbone-only {DIGITS}")
    assert "left out: projection_head (8)" in printed
    output("features --split test --model run --quiet --output f.npz")
    refused("clusters --split test --model run --quiet --output c", 2, "need a model with prototypes")


# Bugs caught: a traceback, the wrong exit code, a file that is written in spite of the error, code that is executed.
@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("show gone.pth", 2, "not found: gone.pth"),
        ("show .", 2, "must be a run (config.yaml and checkpoints/) or a checkpoint"),
        ("show hostile.pth", 1, "refers to posix.system,"),
        ("import hostile.pth --to run", 1, "refers to posix.system,"),
        ("import cut.pth --to run", 1, "incompletely downloaded"),
        ("import short.pth --to run", 1, "missing    prototypes.weight (1, 16)"),
        ("import linear.pth --to run", 2, "needs the backbone"),
        ("import good.pth", 2, "Missing option '--to'"),
        ("import good.pth --to good.pth", 2, "nothing is overwritten"),
        ("import good.pth --to run -o model.prototypes=3", 2, "must be 12, is 3"),
        ("import good.pth --to run -o model.heads=3", 2, "model.heads"),
        ("import good.pth --to run -c nothing", 2, "no recipe 'nothing'"),
        ("import good.pth --to x.safetensors -c demo", 2, "A file has no recipe"),
        ("export good.pth --output x.onnx", 2, "must end in .safetensors or, for PyTorch, in .pth.tar"),
        ("export good.pth --output x.pth --to swav_tf", 2, "--to swav_tf is only for .safetensors"),
        ("export backbone.pth --output x.pth", 2, "Use --to torchvision"),
        ("export good.pth --output x --to timm", 2, "timm and KerasHub have resnet50"),
        ("export good.pth --output x.pth --to keras", 2, "must end in .keras for --to keras"),
        (
            "export good.pth --output x.keras --to swav",
            2,
            "must end in .safetensors or, for PyTorch, in .pth.tar",
        ),
        ("export hostile.pth --output x.safetensors", 1, "refers to posix.system,"),
        ("export unknown.pth --output x.pth", 1, "weights import --prefix NAME"),
        ("export linear.pth --output x.pth --to torchvision", 2, "names are for a backbone"),
    ],
)
def test_refusals(line, code, part, folder, refused):
    before = sorted(path.name for path in folder.iterdir())
    refused(f"weights {line}", code, part)
    assert sorted(path.name for path in folder.iterdir()) == before
