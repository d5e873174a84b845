"""`swav-tf weights`, and what other commands make of an import."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from swav_tf.weights.layout import Sizes, slots
from swav_tf.weights.torch_files import write_torch_file
from tests.cli.command_line import Run, Told

SIZES = Sizes("resnet_small", head=(24, 16), prototypes=12)
DIGITS = ("-o", "data.kind=digits", "-o", "data.evaluation.resize=32", "-o", "data.evaluation.crop=32")


def state(sizes: Sizes = SIZES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"module.{slot.torch}": rng.uniform(0.1, 0.5, slot.shape).astype(np.float32) for slot in slots(sizes)
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with good.pth, backbone.pth, linear.pth, short.pth, hostile.pth and cut.pth."""
    monkeypatch.chdir(tmp_path)
    whole = state()
    backbone = {name: array for name, array in whole.items() if ".pro" not in name}
    write_torch_file(whole, tmp_path / "good.pth")
    write_torch_file(backbone, tmp_path / "backbone.pth")
    linear = {"linear.weight": np.ones((5, 128), np.float32), "linear.bias": np.ones(5, np.float32)}
    write_torch_file(linear, tmp_path / "linear.pth")
    short = {name: array for name, array in whole.items() if "prototypes" not in name}
    write_torch_file(short, tmp_path / "short.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:5000])

    class Hostile:
        def __reduce__(self):
            return os.system, ("touch canary",)

    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    return tmp_path


# Bugs caught: options that do not arrive, JSON among other lines, an import that nothing can use.
def test_in_and_out(folder: Path, told: Told) -> None:
    model = "resnet_small, 128 features, head 24 -> 16, 12 prototypes"
    assert told("weights", "show", "good.pth").splitlines() == [
        "good.pth: SwAV as released",
        f"{model}; {len(state())} tensors, {sum(array.size for array in state().values()):,} numbers",
    ]
    imported = ["weights", "import", "good.pth", "--to", "runs/a"]
    assert told(*imported, *DIGITS) == f"good.pth: SwAV as released\nruns/a: {model}\n"
    assert json.loads(told("weights", "show", "runs/a", "--json"))["model"] == model
    done = json.loads(told("weights", "import", "good.pth", "--to", "b.safetensors", "--json"))
    assert (done["output"], done["format"], done["recipe"]) == ("b.safetensors", "SwAV as released", None)
    told("weights", "export", "runs/a", "--output", "c.pth.tar")
    counters = sum(name.endswith("running_var") for name in state())
    assert f"{len(state()) + counters} tensors with the names of swav" in told(
        "weights", "export", "b.safetensors", "--output", "d.pth"
    )
    assert (folder / "c.pth.tar").read_bytes() == (folder / "d.pth").read_bytes()
    printed = told("weights", "export", "runs/a", "--output", "e.pt", "--names", "torchvision")
    assert "left out: projection_head (8), prototypes (1)" in printed
    made = told("features", "--split", "test", "--model", "runs/a", "--output", "f.npz", "--quiet", "--json")
    assert json.loads(made)["feature_dim"] == 128


# Bugs caught: a backbone alone that is given random scores, or that is left out of features.
def test_a_backbone_alone(folder: Path, run: Run, told: Told) -> None:
    assert "left out: projection_head (8)" in told(
        "weights", "import", "short.pth", "--to", "run", "--backbone-only", *DIGITS
    )
    arguments = ["--split", "test", "--model", "run", "--quiet"]
    told("features", *arguments, "--output", "f.npz")
    left = run("clusters", *arguments, "--output", "c")
    assert left.code == 2
    assert "need a model with prototypes" in left.err


# Bugs caught: a traceback, the wrong exit code, something written in spite of an error, code that was run.
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["show", "gone.pth"], 2, "not found: gone.pth"),
        (["show", "."], 2, "must be a run (config.yaml and checkpoints/) or a checkpoint"),
        (["show", "hostile.pth"], 1, "asks for posix.system,"),
        (["import", "hostile.pth", "--to", "run"], 1, "asks for posix.system,"),
        (["import", "cut.pth", "--to", "run"], 1, "cut off in a download"),
        (["import", "short.pth", "--to", "run"], 1, "missing    prototypes.weight (1, 16)"),
        (["import", "linear.pth", "--to", "run"], 2, "needs a backbone"),
        (["import", "good.pth"], 2, "Missing option '--to'"),
        (["import", "good.pth", "--to", "good.pth"], 2, "nothing is overwritten"),
        (["import", "good.pth", "--to", "run", "-o", "model.prototypes=3"], 2, "must be 12, is 3"),
        (["import", "good.pth", "--to", "run", "-o", "model.heads=3"], 2, "model.heads"),
        (["import", "good.pth", "--to", "run", "-c", "nothing"], 2, "no recipe 'nothing'"),
        (["import", "good.pth", "--to", "x.safetensors", "-c", "demo"], 2, "A file has no recipe"),
        (
            ["export", "good.pth", "--output", "x.onnx"],
            2,
            "must end in .safetensors or, for PyTorch, in .pth.tar",
        ),
        (["export", "good.pth", "--output", "x.pth", "--names", "swav_tf"], 2, "only for .safetensors"),
        (["export", "good.pth", "--output", "x.pth", "--names", "timm"], 2, "'timm' is not one of"),
        (["export", "backbone.pth", "--output", "x.pth"], 2, "Give --names torchvision"),
        (["export", "hostile.pth", "--output", "x.safetensors"], 1, "asks for posix.system,"),
        (
            ["export", "linear.pth", "--output", "x.pth", "--names", "torchvision"],
            2,
            "names are for a backbone",
        ),
    ],
)
def test_what_cannot_be_done(arguments: list[str], code: int, part: str, folder: Path, run: Run) -> None:
    before = sorted(path.name for path in folder.iterdir())
    left = run("weights", *arguments)
    assert left.code == code
    assert part in left.err
    assert "This is a bug" not in left.err
    assert sorted(path.name for path in folder.iterdir()) == before


# Bug caught: a file that is told to be fine by `show` and refused by `import`.
def test_show_tells_what_is_wrong(folder: Path, told: Told) -> None:
    printed = told("weights", "show", "short.pth")
    assert "  missing    prototypes.weight (1, 16)\nThese weights are incomplete" in printed
    assert json.loads(told("weights", "show", "short.pth", "--json"))["problems"] == [
        "missing    prototypes.weight (1, 16)"
    ]
