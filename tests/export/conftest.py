import shutil

import pytest

from export.run_export import ExportSettings, export_run
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
    export_run(tiny_run(), folder, settings, tell=lambda line: None)
    return folder


@pytest.fixture
def exported(everything, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(everything, tmp_path / "exported")
