import pytest

from tests.evaluate.models import make_class_folders


@pytest.fixture
def folders(tmp_path):
    """20 readable images in two classes."""
    return make_class_folders(tmp_path / "images")
