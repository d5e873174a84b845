"""Engines that no TensorRT built: bytes, with facts as a sidecar has them."""

from evaluate.backends.engine_file import (
    Batches,
    BuilderOptions,
    EngineFacts,
    Proof,
    key_of,
    sha256_of,
    write_engine,
)
from evaluate.backends.onnx_metadata import OnnxMetadata, Preprocessing
from evaluate.backends.tensorrt_module import Gpu, TensorRT
from swav_tf.recipe.pretraining import Data

GPU = Gpu(name="NVIDIA A10", compute_capability="8.6", driver="570.10")
PLAN = b"an engine"


def metadata(*, inside=True, crop=8):
    return OnnxMetadata(
        precision="fp16",
        preprocessing=Preprocessing(
            resize=crop,
            crop=crop,
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.25, 0.3),
            layout="NHWC" if inside else "NCHW",
            inside=inside,
        ),
        recipe="tiny",
        step=11,
        data=Data(kind="digits"),
        dataset="digits",
        weights_sha256="ab" * 32,
        versions={},
    )


def engine_facts(*, plan=PLAN, about=None, **changes):
    values = {
        "key": key_of({"plan": sha256_of(plan)}),
        "plan_sha256": sha256_of(plan),
        "module": "tensorrt",
        "version": "10.13.2.6",
        "gpu": GPU,
        "onnx": "model-fp16.onnx",
        "onnx_sha256": "cd" * 32,
        "structure_sha256": "ef" * 32,
        "profile": Batches(min=1, opt=2, max=4),
        "options": BuilderOptions(),
        "proof": Proof(source="engine inspector", convolutions={"Half": 6}),
        "properties": (about or metadata()).as_properties(),
    }
    return EngineFacts(**{**values, **changes})


def write(path, **changes):
    write_engine(path, PLAN, engine_facts(**changes))
    return path


def here(version="10.13.2.6", module_name="tensorrt", module=None):
    return TensorRT(module, module_name, version)
