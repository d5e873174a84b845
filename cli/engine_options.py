"""The options of `swav-tf export --to tensorrt`, and what they mean together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from export.engine import ExportedEngine
    from export.settings import EngineSettings

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


def _batches(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, int, int] | None:
    """Three numbers of images."""
    if value is None:
        return None
    words = value.split(",")
    if len(words) != 3 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise click.BadParameter(
            f"must be three numbers of images >= 1, such as 1,8,32: fewest, usual and most. Received: {value}"
        )
    fewest, usual, most = map(int, words)
    return fewest, usual, most


OPTIONS = (
    click.option("--batch", callback=_batches, metavar="MIN,OPT,MAX",
                 help="Engine: images at once: the fewest, the usual and the most.  [default: 1,8,32]"),
    click.option("--workspace-gib", type=click.FloatRange(0, min_open=True), metavar="GIB",
                 help="Engine: largest scratch memory of a layer.  [default: all there is]"),
    click.option("--builder-level", type=click.IntRange(0, 5), metavar="0..5",
                 help="Engine: how long to look for fast kernels.  [default: TensorRT's]"),
    click.option("--version-compatible", is_flag=True, default=None,
                 help="Engine: later TensorRT of the same major version can run it."),
    click.option("--hardware-compatible", is_flag=True, default=None,
                 help="Engine: every GPU from Ampere on can run it."),
    click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="Engine: kernel timings, read and added to; they make the next build quicker."),
    click.option("--tensorrt", type=click.Choice(list(MODULES)),
                 help="Engine: which TensorRT.  [default: TensorRT, or -RTX if only that is installed]"),
    click.option("--engine-cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Engine: where built ones are kept.  [default: ~/.cache/swav-tf/engines]"),
)  # fmt: skip
NAMES = (
    "batch", "workspace_gib", "builder_level", "version_compatible", "hardware_compatible",
    "timing_cache", "tensorrt", "engine_cache",
)  # fmt: skip


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets those that were given as one mapping, `engine`."""

    @functools.wraps(command)
    def packed(**values: Any) -> Any:
        options = {name: values.pop(name) for name in NAMES}
        return command(**values, engine={name: value for name, value in options.items() if value is not None})

    for option in reversed(OPTIONS):
        packed = option(packed)
    return packed


def engine_settings(given: Mapping[str, Any]) -> EngineSettings:
    """What the options ask for.

    Args:
        given: by name, only those that were given.

    Raises:
        UsageError: they do not fit together.
    """
    from evaluate.backends.engine_file import Batches, BuilderOptions
    from export.settings import PROFILE, EngineSettings, default_cache

    of_builder = {name: given[name] for name in BuilderOptions.model_fields if name in given}
    settings = EngineSettings(
        profile=Batches(**dict(zip(("min", "opt", "max"), given["batch"], strict=True)))
        if "batch" in given
        else PROFILE,
        options=BuilderOptions(**of_builder),
        timing_cache=given.get("timing_cache"),
        module_name=MODULES[given["tensorrt"]] if "tensorrt" in given else None,  # type: ignore[arg-type]
        cache=given.get("engine_cache") or default_cache(),
    )
    settings.check()
    return settings


def refuse_without_tensorrt(given: Mapping[str, Any]) -> None:
    """Options of engines where none is built.

    Raises:
        click.UsageError: there are some.
    """
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{names}: for engines, with --to tensorrt")


def engine_as_dict(engine: ExportedEngine) -> dict[str, Any]:
    """An engine for --json."""
    facts = engine.facts
    return {
        "precision": engine.precision,
        "bytes": engine.bytes,
        "builder": facts.builder,
        "gpu": None if facts.gpu is None else facts.gpu.model_dump(),
        "from_cache": engine.from_cache,
        "profile": facts.profile.model_dump(),
        "proof": facts.proof.model_dump(),
        "parity": None if engine.parity is None else engine.parity.as_dict(),
        "not_compared": engine.not_compared or None,
    }


def engine_line(engine: ExportedEngine) -> str:
    """An engine for a person."""
    proof = engine.facts.proof
    counts = ", ".join(f"{count} convolutions in {name}" for name, count in proof.convolutions.items())
    return (
        f"{engine.path}: {engine.bytes / 2**20:.1f} MiB by {engine.facts.builder}, {counts} by {proof.source}"
        + (f"; {engine.not_compared}" if engine.not_compared else "")
    )
