"""Engines that were built before: taken again when nothing differs, and never when something does."""

import dataclasses
import re
import resource
from types import SimpleNamespace

import pytest

import export.engine as engine
from evaluate.backends.engine_file import Batches, BuilderOptions, sidecar_of
from export.engine import build_engine
from swav_tf.plumbing.errors import DataError
from tests.export.engine_builds import GPU

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


# Bug caught: an engine of another graph, profile, option, version, GPU or driver, taken out of the cache.
def test_what_decides_the_key(everything, engine_settings, monkeypatch):
    path, keys = everything / "model-fp16.onnx", []
    here, _ = engine.builder_here("tensorrt_rtx")
    # Only the name of the file is asked for.
    monkeypatch.setattr(
        engine, "cached_engine", lambda plan, *_, **__: keys.append(plan.stem) or SimpleNamespace()
    )

    def key_of(path=path, tensorrt=here, gpu=None, **changes):
        monkeypatch.setattr(engine, "builder_here", lambda module_name: (tensorrt, gpu))
        build_engine(path, dataclasses.replace(engine_settings, **changes))
        return keys[-1]

    first = key_of()
    others = [
        key_of(everything / "model-fp32.onnx"),
        key_of(profile=Batches(min=1, opt=8, max=33)),
        key_of(options=BuilderOptions(workspace_gib=4)),
        key_of(options=BuilderOptions(builder_level=3)),
        key_of(tensorrt=dataclasses.replace(here, version="1.7.2")),
        key_of(gpu=GPU),
        key_of(gpu=GPU.model_copy(update={"driver": "580.1"})),
        key_of(gpu=GPU.model_copy(update={"compute_capability": "9.0"})),
        key_of(gpu=GPU.model_copy(update={"name": "NVIDIA L40"})),
    ]
    assert len({first, *others}) == 1 + len(others)
    assert key_of() == first


# Bugs caught: an engine that is damaged or foreign, run out of the cache; one that is never built again; silence.
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda plan: plan.write_bytes(plan.read_bytes()[:-1]), "damaged, or another engine"),
        (lambda plan: sidecar_of(plan).unlink(), "no .*plan.json"),
        (
            lambda plan: sidecar_of(plan).write_text(
                sidecar_of(plan).read_text().replace('"version": "1.', '"version": "9.')
            ),
            "it was built by TensorRT-RTX 9",
        ),
        (
            lambda plan: sidecar_of(plan).write_text(
                sidecar_of(plan).read_text().replace('"key": "', '"key": "f')
            ),
            "its key is another",
        ),
    ],
)
def test_a_mismatch_is_told_and_rebuilt(everything, engine_settings, logged, spoil, told):
    path = everything / "model-fp16.onnx"
    built = build_engine(path, engine_settings)
    spoil(built.plan)
    again = build_engine(path, engine_settings)
    assert not again.from_cache
    assert any("built anew" in line for line in logged)
    assert any(re.search(told, line) for line in logged)
    assert build_engine(path, engine_settings).from_cache


# Bug caught: half an engine in the cache on a full disk.
def test_a_full_disk_leaves_no_half_engine(everything, engine_settings):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="could not be written"):
            build_engine(everything / "model-fp16.onnx", engine_settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(engine_settings.cache.iterdir()) == []
