"""Engines on the disk: whole or not at all, and refused where they do not belong."""

import json
import resource

import pytest

from evaluate.backends.engine_file import (
    BuilderOptions,
    check_fits,
    differences,
    key_of,
    read_engine,
    sidecar_of,
    write_engine,
)
from evaluate.backends.tensorrt_module import Gpu
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.backends.engines import GPU, PLAN, engine_facts, here, write

OTHER = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")
TURING = Gpu(name="NVIDIA T4", compute_capability="7.5", driver="570.10")
RTX = {"module": "tensorrt_rtx", "version": "1.7.1.116", "gpu": None}


# Bugs caught: a plan with a header of ours, that trtexec does not load; facts that change on the way.
def test_written_and_read(tmp_path):
    facts = engine_facts()
    write_engine(tmp_path / "deep" / "model.plan", PLAN, facts)
    assert (tmp_path / "deep" / "model.plan").read_bytes() == PLAN
    assert read_engine(tmp_path / "deep" / "model.plan") == (PLAN, facts)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["model.plan", "model.plan.json"]


# Bugs caught: an engine that is damaged, cut off, another one's or without facts, and is loaded all the same.
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda plan: plan.write_bytes(PLAN[:-1] + b"x"), DataError, "damaged, or another engine"),
        (lambda plan: plan.write_bytes(PLAN[:-1]), DataError, "damaged, or another engine"),
        (lambda plan: sidecar_of(plan).write_text("{"), DataError, "Build the engine anew"),
        (lambda plan: sidecar_of(plan).write_text('{"format": 2}'), DataError, "facts of format 1"),
        (lambda plan: sidecar_of(plan).unlink(), UsageError, "no .*model.plan.json"),
        (lambda plan: plan.unlink(), UsageError, "no .*model.plan"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, spoil, error, message):
    plan = write(tmp_path / "model.plan")
    spoil(plan)
    with pytest.raises(error, match=message):
        read_engine(plan)


# Bugs caught: half a file on a full disk; a new engine beside the old one's facts.
@pytest.mark.parametrize("limit", [10, 100])
def test_a_full_disk_leaves_the_old_engine(tmp_path, limit):
    plan = write(tmp_path / "model.plan")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = b"a longer engine"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # 10: the engine; 100: the sidecar
    try:
        with pytest.raises(DataError, match="could not be written"):
            write_engine(plan, new, engine_facts(plan=new))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


VERSIONS = BuilderOptions(version_compatible=True)
HARDWARE = BuilderOptions(hardware_compatible=True)


# Bugs caught: an engine that runs on another GPU, driver or version than it was built for; one that was built to run
# on others and is refused.
@pytest.mark.parametrize(
    ("facts", "tensorrt", "gpu", "told"),
    [
        ({}, here(), GPU, None),
        ({}, here(), None, None),  # nothing to compare with
        ({}, here(), OTHER, "it was built on NVIDIA A10 .*8.6.*here is NVIDIA L4"),
        ({}, here(), GPU.model_copy(update={"driver": "580.1"}), "driver 570.10.*driver 580.1"),
        ({}, here("10.13.2.7"), GPU, "built by TensorRT 10.13.2.6, here is TensorRT 10.13.2.7"),
        ({"options": VERSIONS}, here("10.16.0.1"), GPU, None),
        (
            {"options": VERSIONS},
            here("10.12.0.1"),
            GPU,
            "here is TensorRT 10.12.0.1",
        ),  # older than the engine
        ({"options": VERSIONS}, here("11.0.0.1"), GPU, "here is TensorRT 11.0.0.1"),
        ({"options": HARDWARE}, here(), OTHER, None),
        ({"options": HARDWARE}, here(), TURING, "compute capability 8.0 and newer, here is NVIDIA T4"),
        ({}, here("1.7.1.116", "tensorrt_rtx"), GPU, "it is of TensorRT 10.13.2.6, here is TensorRT-RTX"),
        (RTX, here("1.7.1.116", "tensorrt_rtx"), OTHER, None),  # built without a GPU, for all of them
        (RTX, here("1.7.1.116", "tensorrt_rtx"), TURING, "here is NVIDIA T4"),
        (RTX, here("1.8.0.1", "tensorrt_rtx"), GPU, "built by TensorRT-RTX 1.7.1.116"),
        (RTX, here(), GPU, "it is of TensorRT-RTX 1.7.1.116, here is TensorRT 10.13"),
    ],
)
def test_engines_of_other_machines(tmp_path, facts, tensorrt, gpu, told):
    plan = write(tmp_path / "model.plan", **facts)
    facts = read_engine(plan)[1]
    if told is None:
        assert differences(facts, tensorrt, gpu) == []
        check_fits(plan, facts, tensorrt, gpu)
        return
    with pytest.raises(UsageError, match=f"{told}.*It was not run. .*swav-tf export model-fp16.onnx"):
        check_fits(plan, facts, tensorrt, gpu)


# Bugs caught: keys that depend on the order of facts, or do not depend on one of them.
def test_keys():
    facts = {"onnx": "a", "gpu": {"name": "x", "driver": "1"}}
    assert key_of(facts) == key_of(json.loads('{"gpu": {"driver": "1", "name": "x"}, "onnx": "a"}'))
    assert key_of(facts) != key_of({**facts, "gpu": {"name": "x", "driver": "2"}})
