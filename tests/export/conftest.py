import logging
import shutil

import pytest

from export.run import export_run
from export.settings import ExportSettings
from swav_tf.plumbing.log import log
from tests.tiny_run import tiny_run


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """A folder with all precisions of the tiny run, all outputs; to be left as it is."""
    folder = tmp_path_factory.mktemp("exported")
    settings = ExportSettings(
        precisions=("fp32", "fp16", "int8"),
        outputs=("features", "projections", "scores"),
        reference_images=80,
        calibration_images=48,
    )
    export_run(tiny_run(), folder, settings)
    return folder


@pytest.fixture
def exported(everything, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(everything, tmp_path / "exported")


@pytest.fixture(scope="session")
def int8(tmp_path_factory):
    """A folder with the tiny run in TensorRT's int8; to be left as it is."""
    folder = tmp_path_factory.mktemp("int8")
    settings = ExportSettings(
        precisions=("int8",), target="tensorrt", reference_images=80, calibration_images=48
    )
    export_run(tiny_run(), folder, settings)
    return folder


@pytest.fixture
def logged():
    """The messages logged during a test."""
    lines, level = [], log.level
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.setLevel(level)
    log.removeHandler(handler)
