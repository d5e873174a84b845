"""`swav-tf doctor`: report what is installed, missing or conflicting."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import click

from cli.errors import EXTRAS
from cli.options import Report, json_options
from cli.progress import load_tensorflow_quietly

DISTRIBUTION = "swav-tf"
IMPORT_NAMES = ("cli", "configs", "evaluate", "export", "swav_tf")
PACKAGES = (
    "swav-tf", "numpy", "pillow", "opencv-python-headless", "pydantic",
    "tensorflow", "keras", "keras-cv", "tensorflow-datasets", "scikit-learn",
    "onnx", "onnxruntime", "onnxruntime-gpu", "tf2onnx", "tensorrt-cu12", "tensorrt-rtx", "cuda-python",
)  # fmt: skip


@click.command()
@click.option("--gpu", is_flag=True, help="Also list the GPUs that TensorFlow finds; takes several seconds.")
@json_options
def command(gpu: bool, report: Report) -> int:
    """Report versions, hardware, missing extras, and why ONNX Runtime cannot use a GPU.

    The exit code is 1 if another installed package provides one of swav-tf's import names.

    \b
    Examples:
      swav-tf doctor
      swav-tf doctor --gpu --json
    """
    found = examine(gpu=gpu)
    report.show(found, _lines(found))
    return 1 if found["clashes"] else 0


def examine(*, gpu: bool = False) -> dict[str, Any]:
    """Examine the machine and the installed packages; with `gpu`, load TensorFlow to list its devices."""
    # Of the plumbing only: where another package's `evaluate` hides ours, this command still has to say so.
    from swav_tf.plumbing.nvidia import no_gpu_reason
    from swav_tf.plumbing.system import UNKNOWN, available_cores, memory_gib, version_of

    found = [(package, version_of(package)) for package in PACKAGES]
    versions = {package: None if version == UNKNOWN else version for package, version in found}
    missing = {
        extra: [module for module in modules if importlib.util.find_spec(module) is None]
        for extra, modules in EXTRAS.items()
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": available_cores(),
        "memory_gib": memory_gib(),
        "versions": versions,
        "missing_extras": {extra: modules for extra, modules in missing.items() if modules},
        "remark": onnxruntime_remark(versions, has_gpu=no_gpu_reason() is None),
        "clashes": find_clashes(),
        "gpus": _gpus() if gpu else None,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    """Return the findings as lines of text."""
    lines = [
        f"Python    {found['python']} on {found['platform']}",
        f"Machine   {found['cores']} cores, memory {found['memory_gib']:.1f} GiB",
    ]
    if found["gpus"] is not None:
        lines.append(f"GPUs      {', '.join(found['gpus']) or 'TensorFlow sees none'}")
    for package, version in found["versions"].items():
        lines.append(f"  {package:22}  {version or 'not installed'}")
    for extra, modules in found["missing_extras"].items():
        lines.append(f"Extra '{extra}' lacks {', '.join(modules)}: pip install 'swav-tf[{extra}]'")
    if found["remark"] is not None:
        lines.append(f"Remark: {found['remark']}")
    for clash in found["clashes"]:
        others = ", ".join(clash["others"])
        lines.append(
            f"Problem: `import {clash['name']}` belongs to both {DISTRIBUTION} and {others}; it currently imports "
            f"{clash['imported_from'] or 'nothing'}. Install {DISTRIBUTION} in a separate environment."
        )
    if not found["clashes"]:
        lines.append("No other package owns one of swav-tf's import names.")
    return lines


def onnxruntime_remark(versions: Mapping[str, str | None], *, has_gpu: bool) -> str | None:
    """Return why ONNX Runtime cannot use the machine's NVIDIA GPU, and the remedy; None if nothing is wrong."""
    for_cpu, for_gpu = versions.get("onnxruntime"), versions.get("onnxruntime-gpu")
    if for_cpu and for_gpu:
        extra = "onnx-gpu" if has_gpu else "onnx"
        return (
            "onnxruntime and onnxruntime-gpu have overwritten each other's files: pip uninstall "
            f"onnxruntime onnxruntime-gpu, then pip install 'swav-tf[{extra}]'"
        )
    if has_gpu and not for_gpu:
        first = "pip uninstall onnxruntime, then " if for_cpu else ""
        return f"ONNX Runtime cannot use this machine's GPU: {first}pip install 'swav-tf[onnx-gpu]'"
    return None


def find_clashes() -> list[dict[str, Any]]:
    """Return the import names that other distributions own too, with these and with what is imported."""
    owners = metadata.packages_distributions()
    clashes = []
    for name in IMPORT_NAMES:
        if others := sorted(set(owners.get(name, [])) - {DISTRIBUTION}):
            spec = importlib.util.find_spec(name)
            places = list(spec.submodule_search_locations or []) if spec else []
            clashes.append({"name": name, "others": others, "imported_from": places[0] if places else None})
    return clashes


def _gpus() -> list[str]:
    load_tensorflow_quietly()
    import tensorflow as tf

    return [
        str(tf.config.experimental.get_device_details(device).get("device_name", device.name))
        for device in tf.config.list_physical_devices("GPU")
    ]
