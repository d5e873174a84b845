"""Engines on disk, refused where they do not belong; the packages and the GPU. No engine is run."""

import hashlib
import json
import resource
import sys
from types import SimpleNamespace

import pytest

from evaluate.backends import open_model
from evaluate.backends.engine_file import (
    Batches,
    BuilderOptions,
    EngineFacts,
    Proof,
    check_fits,
    read_engine,
    sidecar_of,
    write_engine,
)
from evaluate.backends.onnx_metadata import OnnxMetadata, Preprocessing
from evaluate.backends.tensorrt_module import Gpu, NoGpuError, TensorRT, find_tensorrt, the_gpu
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.data import Data

PLAN = b"an engine"
GPU = Gpu(name="NVIDIA A10", compute_capability="8.6", driver="570.10")
OTHER = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")
TURING = Gpu(name="NVIDIA T4", compute_capability="7.5", driver="570.10")
NEWER_DRIVER = GPU.model_copy(update={"driver": "580.1"})
RTX = {"module": "tensorrt_rtx", "version": "1.7.1.116", "gpu": None}
VERSIONS = {"options": BuilderOptions(version_compatible=True)}
HARDWARE = {"options": BuilderOptions(hardware_compatible=True)}


def metadata():
    how = Preprocessing(
        resize=8, crop=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), layout="NHWC", inside=True
    )
    return OnnxMetadata(
        precision="fp16", preprocessing=how, recipe="tiny", step=11, data=Data(kind="digits"), dataset="digits",
        weights_sha256="ab" * 32, versions={},
    )  # fmt: skip


def engine_facts(*, plan=PLAN, **changes):
    values = {
        "plan_sha256": hashlib.sha256(plan).hexdigest(), "module": "tensorrt", "version": "10.13.2.6",
        "gpu": GPU, "onnx": "model-fp16.onnx", "onnx_sha256": "cd" * 32, "profile": Batches(min=1, opt=2, max=4),
        "options": BuilderOptions(), "proof": Proof(source="engine inspector", convolutions={"Half": 6}),
        "properties": metadata().as_properties(),
    }  # fmt: skip
    return EngineFacts(**{**values, **changes})


@pytest.fixture
def plan(tmp_path):
    write_engine(tmp_path / "deep" / "model.plan", PLAN, engine_facts())
    return tmp_path / "deep" / "model.plan"


def here(version="10.13.2.6", module_name="tensorrt"):
    return TensorRT(None, module_name, version)


# === Files ===


# Bugs caught: a plan with an additional header, which trtexec does not load; facts that change on the way.
def test_written_and_read(plan):
    assert plan.read_bytes() == PLAN
    assert read_engine(plan) == (PLAN, engine_facts())
    assert sorted(path.name for path in plan.parent.iterdir()) == ["model.plan", "model.plan.json"]


# Bug caught: an engine of an earlier version that cannot be read.
def test_facts_of_earlier_versions(plan):
    facts = json.loads(sidecar_of(plan).read_text())
    facts |= {"structure_sha256": "ef" * 32, "refitted_from": None}
    facts["options"] |= {"refittable": False, "workspace_gib": 1.5, "builder_level": 4}
    sidecar_of(plan).write_text(json.dumps(facts))
    assert read_engine(plan) == (PLAN, engine_facts())


# Bugs caught: an engine that is damaged, truncated, another one's or without facts, and is loaded all the same.
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda plan: plan.write_bytes(PLAN[:-1] + b"x"), DataError, "damaged or another engine"),
        (lambda plan: sidecar_of(plan).write_text("{"), DataError, "Build the engine again"),
        (lambda plan: sidecar_of(plan).write_text('{"format": 2}'), DataError, "facts of format 1"),
        (lambda plan: sidecar_of(plan).unlink(), UsageError, "not found: .*model.plan.json"),
        (lambda plan: plan.unlink(), UsageError, "not found: .*model.plan"),
    ],
)
def test_damaged_engines(plan, spoil, error, message):
    spoil(plan)
    with pytest.raises(error, match=message):
        read_engine(plan)


# Bugs caught: half a file on a full disk; a new engine with the old one's facts.
@pytest.mark.parametrize("limit", [10, 100])
def test_a_full_disk_leaves_the_old_engine(plan, limit):
    before = {path.name: path.read_bytes() for path in plan.parent.iterdir()}
    new = b"a longer engine"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # 10: the engine; 100: the sidecar
    try:
        with pytest.raises(DataError, match="could not be written"):
            write_engine(plan, new, engine_facts(plan=new))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in plan.parent.iterdir()} == before


# Bugs caught: an engine that runs on another GPU, driver or version than it was built for; one that was built to run
# on several and is refused.
@pytest.mark.parametrize(
    ("changes", "tensorrt", "gpu", "message"),
    [
        ({}, here(), GPU, None),
        ({}, here(), OTHER, "it was built on NVIDIA A10 .*8.6.*this machine has NVIDIA L4"),
        ({}, here(), NEWER_DRIVER, "driver 570.10.*driver 580.1"),
        ({}, here("10.13.2.7"), GPU, "built by TensorRT 10.13.2.6, but this machine has TensorRT 10.13.2.7"),
        (VERSIONS, here("10.16.0.1"), GPU, None),
        (VERSIONS, here("10.12.0.1"), GPU, "this machine has TensorRT 10.12.0.1"),  # older than the engine
        (VERSIONS, here("11.0.0.1"), GPU, "this machine has TensorRT 11.0.0.1"),
        (HARDWARE, here(), OTHER, None),
        (HARDWARE, here(), TURING, "compute capability 8.0 and newer, but this machine has NVIDIA T4"),
        (
            {},
            here("1.7.1.116", "tensorrt_rtx"),
            GPU,
            "built by TensorRT 10.13.2.6, but this machine has TensorRT-RTX",
        ),
        (RTX, here("1.7.1.116", "tensorrt_rtx"), OTHER, None),  # built without a GPU, for all of them
        (RTX, here("1.7.1.116", "tensorrt_rtx"), TURING, "this machine has NVIDIA T4"),
        (RTX, here("1.8.0.1", "tensorrt_rtx"), GPU, "built by TensorRT-RTX 1.7.1.116"),
        (RTX, here(), GPU, "built by TensorRT-RTX 1.7.1.116, but this machine has TensorRT 10.13"),
    ],
)
def test_engines_of_other_machines(plan, changes, tensorrt, gpu, message):
    facts = engine_facts(**changes)
    if message is None:
        check_fits(plan, facts, tensorrt, gpu)
        return
    with pytest.raises(UsageError, match=f"{message}.*It was not run. .*swav-tf export model-fp16.onnx"):
        check_fits(plan, facts, tensorrt, gpu)


# === Packages and the GPU ===


# Bugs caught: a traceback without a package or a GPU, or a message that does not say what to install.
def test_what_is_missing(plan, monkeypatch):
    with pytest.raises(UsageError, match="apply to ONNX files only"):
        open_model(plan, provider="tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match=r"needs TensorRT .*pip install 'swav-tf\[tensorrt\]'"):
        open_model(plan)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.11.0.33"))
    with pytest.raises(UsageError, match=r"10.12 or newer. Received: 10.11.0.33"):
        find_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1.116"))
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(UsageError, match=r"and polygraphy.*pip install tensorrt-rtx polygraphy"):
        find_tensorrt("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(NoGpuError, match=r"cuda-python.*pip install 'swav-tf\[tensorrt\]'"):
        the_gpu()


# Bug caught: an engine of TensorRT-RTX, given to TensorRT because Polygraphy has loaded that one.
def test_one_process_uses_one_of_them(monkeypatch):
    config = pytest.importorskip("polygraphy.config")
    monkeypatch.setattr(config, "USE_TENSORRT_RTX", True)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.0.1"))
    with pytest.raises(UsageError, match="One process can use TensorRT or TensorRT-RTX"):
        find_tensorrt("tensorrt")
