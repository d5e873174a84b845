"""What `swav-tf doctor` examines: the machine, the packages and conflicting import names."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cli.extras import EXTRAS, onnxruntime_remark
from cli.quiet import load_tensorflow_quietly
from evaluate.benchmark.machine import memory_gib, no_gpu_reason
from swav_tf import USER_BACKEND
from swav_tf.plumbing.system import available_cores

IMPORT_NAMES = ("cli", "configs", "evaluate", "export", "swav_tf")
DISTRIBUTION = "swav-tf"
PACKAGES = (
    "swav-tf", "numpy", "pillow", "opencv-python-headless", "pydantic",
    "tensorflow", "keras", "keras-cv", "tensorflow-datasets", "scikit-learn",
    "onnx", "onnxruntime", "onnxruntime-gpu", "tf2onnx", "tensorrt-cu12", "tensorrt-rtx", "cuda-python",
)  # fmt: skip


@dataclass(frozen=True)
class Clash:
    """An import name that another installed distribution owns too."""

    name: str
    others: list[str]
    imported_from: str | None

    def __str__(self) -> str:
        """Describe the conflict and the remedy."""
        return (
            f"`import {self.name}` belongs to both {DISTRIBUTION} and {', '.join(self.others)}; it currently "
            f"imports {self.imported_from or 'nothing'}. Install {DISTRIBUTION} in a separate environment."
        )


@dataclass(frozen=True)
class Installation:
    """The findings."""

    python: str
    platform: str
    cores: int
    memory_gib: float
    versions: dict[str, str | None]
    missing_extras: dict[str, list[str]]
    remark: str | None
    clashes: list[Clash]
    gpus: list[str] | None
    keras: dict[str, Any]  # the user's settings that swav-tf overrides

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Return the findings as lines of text."""
        gpus = [] if self.gpus is None else [f"GPUs      {', '.join(self.gpus) or 'TensorFlow sees none'}"]
        return [
            f"Python    {self.python} on {self.platform}",
            f"Machine   {self.cores} cores, memory {self.memory_gib:.1f} GiB",
            *gpus,
            *(f"  {package:22}  {version or 'not installed'}" for package, version in self.versions.items()),
            *(
                f"Extra '{extra}' lacks {', '.join(modules)}: pip install 'swav-tf[{extra}]'"
                for extra, modules in self.missing_extras.items()
            ),
            *([] if self.remark is None else [f"Remark: {self.remark}"]),
            *(
                f"Keras     your {name} is {value}; swav-tf uses its own"
                for name, value in self.keras.items()
            ),
            *(f"Problem: {clash}" for clash in self.clashes),
            *([] if self.clashes else ["No other package owns one of swav-tf's import names."]),
        ]


def examine(*, gpu: bool = False) -> Installation:
    """Examine the machine and the installed packages; with `gpu`, load TensorFlow to list its devices."""
    versions = {package: _version(package) for package in PACKAGES}
    return Installation(
        python=platform.python_version(),
        platform=platform.platform(),
        cores=available_cores(),
        memory_gib=memory_gib(),
        versions=versions,
        missing_extras=_missing_extras(),
        remark=onnxruntime_remark(versions, has_gpu=no_gpu_reason() is None),
        clashes=find_clashes(),
        gpus=_gpus() if gpu else None,
        keras=_keras_settings(),
    )


def find_clashes() -> list[Clash]:
    """Return the import names that other distributions own too."""
    owners = metadata.packages_distributions()
    clashes = []
    for name in IMPORT_NAMES:
        others = sorted(set(owners.get(name, [])) - {DISTRIBUTION})
        if others:
            spec = importlib.util.find_spec(name)
            places = list(spec.submodule_search_locations or []) if spec else []
            clashes.append(Clash(name, others, places[0] if places else None))
    return clashes


def _keras_settings() -> dict[str, Any]:
    """Return the user's settings of Keras that differ from what the networks need, read without loading Keras."""
    needed = {
        "backend": "tensorflow",
        "floatx": "float32",
        "image_data_format": "channels_last",
        "epsilon": 1e-7,
    }
    file = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    settings = {name: found[name] for name in needed if name in found}
    if USER_BACKEND is not None:
        settings["backend"] = USER_BACKEND
    return {name: value for name, value in settings.items() if value != needed[name]}


def _missing_extras() -> dict[str, list[str]]:
    missing = {
        extra: [module for module in modules if importlib.util.find_spec(module) is None]
        for extra, modules in EXTRAS.items()
    }
    return {extra: modules for extra, modules in missing.items() if modules}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    load_tensorflow_quietly()
    import tensorflow as tf

    return [
        str(tf.config.experimental.get_device_details(device).get("device_name", device.name))
        for device in tf.config.list_physical_devices("GPU")
    ]
