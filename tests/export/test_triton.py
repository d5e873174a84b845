"""The model repository for Triton, read by Triton's published schema (its numbers and types are in data/)."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

import export.triton
from cli.errors import run_and_report
from cli.main import swav_tf
from evaluate.backends import open_model
from evaluate.backends.engine_file import Batches, BuilderOptions, EngineFacts, Proof, sidecar_of
from evaluate.backends.tensorrt_module import Gpu
from export.staging import ExportError
from export.triton import write_repository
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256
from tests.export.edits import edit, edit_facts, flip_a_weight
from tests.tiny_run import tiny_run


def model_config():
    """The class of Triton's message."""
    found = json.loads((Path(__file__).parent / "data" / "triton_model_config.json").read_text())
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, values in found["enums"].items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in found["messages"].items():
        message = file.message_type.add(name=name)
        for key, (number, kind) in fields.items():
            *repeated, plain = kind.split()
            added = message.field.add(name=key, number=number)
            added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if plain in found["messages"] or plain in found["enums"]:
                added.type = field.TYPE_ENUM if plain in found["enums"] else field.TYPE_MESSAGE
                added.type_name = f".inference.{plain}"
            else:
                added.type = getattr(field, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read_config(folder):
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config()()), text


# Bugs caught: a field that Triton does not know or that is of another type, names, types or sizes other than the graph's
# (the batch among them), files where Triton does not look, int8 for CPUs put on a GPU, a comment that is wrong when used.
def test_a_repository(tmp_path, capsys):
    words = "--precision fp32,fp16,int8 --outputs features,scores --reference-images 80 --calibration-images 48 --json"
    folders = ["--output", str(tmp_path / "out"), "--triton", str(tmp_path / "served")]
    assert run_and_report(swav_tf, ["export", str(tiny_run()), *folders, *words.split()]) == 0
    found = json.loads(capsys.readouterr().out)["triton"]
    assert [Path(path).name for path in found] == ["tiny-fp32", "tiny-fp16", "tiny-int8-cpu"]
    kinds = []
    for path in map(Path, found):
        assert sorted(str(file.relative_to(path)) for file in path.rglob("*")) == [
            "1", "1/model.onnx", "config.pbtxt",
        ]  # fmt: skip
        config, text = read_config(path)
        graph = onnx.load(path / "1" / "model.onnx").graph
        assert (config.name, config.backend, config.max_batch_size) == (path.name, "onnxruntime", 32)
        config_shapes = {tensor.name: list(tensor.dims) for tensor in [*config.input, *config.output]}
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
            for value in [*graph.input, *graph.output]
        }
        assert config_shapes == shapes == {"images": [32, 32, 3], "features": [128], "scores": [12]}
        assert [tensor.data_type for tensor in [*config.input, *config.output]] == [2, 11, 11]
        assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
        assert config.dynamic_batching.max_queue_delay_microseconds == 1000
        kinds += [group.kind for group in config.instance_group]
        if path.name == "tiny-fp16":
            used = text_format.Parse(text.replace("# optimization", "optimization"), model_config()())
            assert used.optimization.execution_accelerators.gpu_execution_accelerator[0].name == "tensorrt"
    assert kinds == [0, 1, 2]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    wanted = open_model(tmp_path / "out" / "model-fp32.onnx").run(images)["features"]
    found = open_model(tmp_path / "served" / "tiny-fp32" / "1" / "model.onnx").run(images)["features"]
    np.testing.assert_array_equal(found, wanted)


def engine_beside(folder, **changes):
    """A stand-in for an engine, with complete facts."""
    plan = folder / "model-fp16.plan"
    properties = {entry.key: entry.value for entry in onnx.load(folder / "model-fp16.onnx").metadata_props}
    plan.write_bytes(b"an engine")
    facts = EngineFacts(
        key="k", plan_sha256=hashlib.sha256(b"an engine").hexdigest(), module="tensorrt", version="10.16.1",
        gpu=Gpu(name="NVIDIA H100", compute_capability="9.0", driver="580"), onnx="model-fp16.onnx", onnx_sha256=file_sha256(folder / "model-fp16.onnx"),
        profile=Batches(min=1, opt=64, max=256), options=BuilderOptions(),
        proof=Proof(source="engine inspector", convolutions={"Half": 6}), properties=properties,
    ).model_copy(update=changes)  # fmt: skip
    sidecar_of(plan).write_text(facts.model_dump_json())
    return plan


# Bugs caught: batches that the engine's profile refuses, the wrong backend, and engines that no Triton can load.
def test_engines(exported, tmp_path):
    [folder] = write_repository(tmp_path / "served", [engine_beside(exported)])
    config, text = read_config(folder)
    assert (folder.name, config.platform, config.max_batch_size) == (
        "tiny-fp16-tensorrt", "tensorrt_plan", 256,
    )  # fmt: skip
    assert list(config.dynamic_batching.preferred_batch_size) == [64, 256]
    assert config.instance_group[0].kind == 1
    assert [output.name for output in config.output] == ["features", "projections", "scores"]
    assert (folder / "1" / "model.plan").read_bytes() == b"an engine"
    assert "Built by TensorRT 10.16.1 for NVIDIA H100" in text
    for changes, message in [
        ({"module": "tensorrt_rtx"}, "Triton serves engines by TensorRT. Received"),
        ({"profile": Batches(min=4, opt=8, max=8)}, "smallest batch is 1. Received"),
        ({"onnx": "moved.onnx"}, "next to the ONNX file"),
        ({"onnx_sha256": "of another"}, "is another: build"),
    ]:
        plan = engine_beside(exported, **changes)
        with pytest.raises(UsageError, match=message):
            write_repository(tmp_path / "other", [plan])
        assert not (tmp_path / "other").exists()


# Bug caught: a damaged model, put where a server takes it from.
def test_damaged_files_are_not_served(exported, tmp_path):
    engine = engine_beside(exported)
    engine.write_bytes(b"an enginf")
    path = exported / "model-fp32.onnx"
    flip_a_weight(path)
    for file in (engine, path):
        with pytest.raises(DataError, match=r"is damaged or (another|was replaced)"):
            write_repository(tmp_path / "served", [file])
    assert not (tmp_path / "served").exists()


# Bug caught: class numbers without names, or class names of features that have none.
def test_labels(exported, tmp_path):
    names = [f"class {number}" for number in range(12)]

    def as_logits(model):
        [scores] = [output for output in model.graph.output if output.name == "scores"]
        for node in model.graph.node:
            node.output[:] = ["logits" if name == "scores" else name for name in node.output]
        scores.name = "logits"
        edit_facts(model, class_names=names)

    path = edit(exported / "model-fp32.onnx", as_logits)
    [folder] = write_repository(tmp_path / "served", [path])
    config, _ = read_config(folder)
    assert [output.label_filename for output in config.output] == ["", "", "labels.txt"]
    assert (folder / "labels.txt").read_text().splitlines() == names


# Bug caught: half a model in the place that a running server watches.
def test_a_full_disk(everything, tmp_path, monkeypatch):
    files = [everything / "model-fp32.onnx", everything / "model-fp16.onnx"]
    write_repository(tmp_path / "served", files[:1])
    before = {path: path.read_bytes() for path in (tmp_path / "served").rglob("*") if path.is_file()}
    copy = shutil.copyfile

    def full(source, target):
        if "fp16" in source.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(export.triton.shutil, "copyfile", full)
    with pytest.raises(ExportError, match=r"could not be written.*No space left.*another folder"):
        write_repository(tmp_path / "served", files)
    assert {path: path.read_bytes() for path in (tmp_path / "served").rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["tiny-fp32"]
