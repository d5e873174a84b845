import pytest

from tests.classifiers import pretraining_run
from tests.replicas import split_cpu, two_replicas

split_cpu()


@pytest.fixture
def mirrored():
    """A strategy with two replicas."""
    return two_replicas()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The folder of a pretraining run to start from; tests must not change it."""
    return pretraining_run(tmp_path_factory.mktemp("pretrained"))
