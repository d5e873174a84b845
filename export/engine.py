"""From an exported ONNX file to a TensorRT engine whose precision is proven. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from evaluate.backends.engine_file import Batches, BuilderOptions, EngineFacts, sha256_of, write_engine
from evaluate.backends.tensorrt_module import (
    INSTALL,
    Gpu,
    ModuleName,
    NoGpuError,
    TensorRT,
    find_tensorrt,
    gpu_or_none,
    the_gpu,
)
from export.engine_build import build_plan, read_source
from export.engine_cache import Built, cached_engine, default_cache, engine_key, read_refittable, refit_plan
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log

PROFILE: Final = Batches(min=1, opt=8, max=32)
LEVELS: Final = range(6)


@dataclass(frozen=True)
class EngineSettings:
    """What is asked for.

    Attributes:
        profile: images at once; None: 1, 8, 32, or with `refit` the old engine's.
        options: of the builder; None: its own, or with `refit` the old engine's.
        timing_cache: file with timings of kernels, read and added to; None: none.
        refit: an old engine that the weights are put into instead of building one; None: build.
        module_name: TensorRT or TensorRT-RTX; None: whichever is here.
        cache: folder of the engines.
    """

    profile: Batches | None = None
    options: BuilderOptions | None = None
    timing_cache: Path | None = None
    refit: Path | None = None
    module_name: ModuleName | None = None
    cache: Path = field(default_factory=default_cache)

    def check(self) -> None:
        """Refuses what does not fit together.

        Raises:
            UsageError: it does not.
        """
        profile, options = self.profile or PROFILE, self.options or BuilderOptions()
        if not profile.min <= profile.opt <= profile.max:
            raise UsageError(
                "--batch must be the fewest, the usual and the most images at once, in this order. Received: "
                f"{profile.min},{profile.opt},{profile.max}."
            )
        if options.builder_level is not None and options.builder_level not in LEVELS:
            raise UsageError(f"--builder-level must be 0 to 5. Received: {options.builder_level}.")
        if options.workspace_gib is not None and not options.workspace_gib > 0:
            raise UsageError(f"--workspace-gib must be greater than 0. Received: {options.workspace_gib:g}.")
        if self.refit is not None and (self.profile, self.options, self.timing_cache) != (None, None, None):
            raise UsageError(
                "With --refit the engine stays as it was built but for its weights. Received also: options of a "
                "builder. Leave them out, or build without --refit."
            )


def builder_here(module_name: ModuleName | None) -> tuple[TensorRT, Gpu | None]:
    """What builds, and for which GPU; None: for every GPU that TensorRT-RTX supports from Ampere on.

    Raises:
        UsageError: TensorRT is missing, or it is not TensorRT-RTX and there is no GPU.
    """
    tensorrt = find_tensorrt(module_name)
    if tensorrt.is_rtx:
        return tensorrt, gpu_or_none()
    try:
        return tensorrt, the_gpu()
    except NoGpuError as error:
        raise NoGpuError(
            f"TensorRT builds an engine on the GPU that will run it. {error} "
            f"(TensorRT-RTX builds without one: {INSTALL['tensorrt_rtx']}, then --tensorrt rtx.)"
        ) from error


def build_engine(path: Path, settings: EngineSettings) -> Built:
    """The engine of an exported ONNX file, out of the cache if it is there and whole.

    Args:
        path: the ONNX file.
        settings: what is asked for.

    Raises:
        UsageError: TensorRT or the GPU is missing, or an option cannot be honoured.
        DataError: a file is damaged, or the disk refuses.
        ExportError: TensorRT cannot build it, or built it in another precision.
    """
    settings.check()
    tensorrt, gpu = builder_here(settings.module_name)
    _check_options(tensorrt, settings)
    source = read_source(path)
    old = None if settings.refit is None else read_refittable(settings.refit, source, tensorrt, gpu)
    before = None if old is None else old[1]
    profile = settings.profile or (PROFILE if before is None else before.profile)
    options = settings.options or (BuilderOptions() if before is None else before.options)
    refitted_from = None if before is None else before.key
    key = engine_key(source, tensorrt, gpu, profile=profile, options=options, refitted_from=refitted_from)
    plan = settings.cache / f"{key}.plan"
    if (cached := cached_engine(plan, tensorrt, gpu)) is not None:
        return cached

    log.info(
        f"{path.name}: {'refit' if old else 'build'} by {tensorrt} for {gpu or 'GPUs of Ampere and newer'}"
    )
    if old is None:
        data, proof = build_plan(
            source, tensorrt, gpu, profile=profile, options=options, timing_cache=settings.timing_cache
        )
    else:
        data, proof = refit_plan(old, source, tensorrt)
    facts = EngineFacts(
        key=key,
        plan_sha256=sha256_of(data),
        module=tensorrt.module_name,
        version=tensorrt.version,
        gpu=gpu,
        onnx=path.name,
        onnx_sha256=source.sha256,
        structure_sha256=source.structure_sha256,
        profile=profile,
        options=options,
        refitted_from=refitted_from,
        proof=proof,
        properties=source.properties,
    )
    write_engine(plan, data, facts)
    return Built(plan, data, facts, from_cache=False)


def _check_options(tensorrt: TensorRT, settings: EngineSettings) -> None:
    """What TensorRT-RTX has not."""
    options = settings.options or BuilderOptions()
    if not tensorrt.is_rtx:
        return
    asked: Mapping[str, bool] = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible (every engine of TensorRT-RTX is)": options.hardware_compatible,
        "--timing-cache": settings.timing_cache is not None,
    }
    if refused := [option for option, wanted in asked.items() if wanted]:
        raise UsageError(f"{tensorrt} has not: {', '.join(refused)}. Leave out what it has not.")
    if (options.refittable or settings.refit is not None) and gpu_or_none() is None:
        raise UsageError(
            "--refittable and --refit need a GPU, with TensorRT-RTX too: weights that can be changed are laid out "
            "for it. Received: none here."
        )
