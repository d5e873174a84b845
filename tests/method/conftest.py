import pytest

from tests.replicas import split_cpu, two_replicas

split_cpu()


@pytest.fixture
def mirrored():
    """A strategy with two replicas."""
    return two_replicas()
