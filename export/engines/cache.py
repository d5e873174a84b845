"""Engines that were built before, under a name that is the checksum of all that decides what is built. No TensorFlow.

That is the graph, the profile, the builder's options, TensorRT, the GPU and its driver. Whatever of these changes,
the name changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluate.runners.engine_file import (
    FORMAT,
    Batches,
    BuilderOptions,
    EngineFacts,
    differences,
    key_of,
    read_engine,
    sidecar_of,
    write_engine,
)
from evaluate.runners.tensorrt_module import Gpu, TensorRT
from export.engines.source import EngineSource
from swav_tf.errors import DataError, UsageError


def default_cache() -> Path:
    """Where engines are kept: `swav-tf/engines` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "swav-tf" / "engines"


@dataclass(frozen=True)
class Built:
    """An engine.

    Attributes:
        plan: where it is in the cache.
        data: its bytes.
        facts: what it is.
        from_cache: whether it was there already.
    """

    plan: Path
    data: bytes
    facts: EngineFacts
    from_cache: bool

    def place(self, plan: Path) -> None:
        """Writes it, with its sidecar, where it is wanted.

        Raises:
            DataError: the disk is full or refuses.
        """
        write_engine(plan, self.data, self.facts)


def engine_key(
    source: EngineSource,
    tensorrt: TensorRT,
    gpu: Gpu | None,
    *,
    profile: Batches,
    options: BuilderOptions,
    refitted_from: str | None,
) -> str:
    """The checksum of all that decides what is built, see `EngineFacts` for what each is."""
    decides = {
        "format": FORMAT,
        "onnx_sha256": source.sha256,
        "profile": profile.model_dump(),
        "options": options.model_dump(),
        "module": tensorrt.module_name,
        "version": tensorrt.version,
        "gpu": None if gpu is None else gpu.model_dump(),
        "refitted_from": refitted_from,
    }
    return key_of(decides)


def cached_engine(
    plan: Path, tensorrt: TensorRT, gpu: Gpu | None, *, tell: Callable[[str], None]
) -> Built | None:
    """The engine of a key, if it is whole and what its name says; why it is not is told.

    Args:
        plan: KEY.plan in the cache.
        tensorrt: that is to run it.
        gpu: likewise; None where there is none.
        tell: called with a line about what goes on.
    """
    if not plan.exists() and not sidecar_of(plan).exists():
        return None
    try:
        data, facts = read_engine(plan)
    except (DataError, UsageError) as error:
        tell(f"The cached engine is not used and built anew: {error}")
        return None
    wrong = differences(facts, tensorrt, gpu) + ([] if facts.key == plan.stem else ["its key is another"])
    if wrong:
        tell(f"The cached engine {plan} is not used and built anew: {'; '.join(wrong)}.")
        return None
    tell(f"{facts.onnx}: out of the cache, {plan}")
    return Built(plan, data, facts, from_cache=True)
