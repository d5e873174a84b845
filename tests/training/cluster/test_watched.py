"""What workers tell each other before they watch, with the all-reduce played."""

from types import SimpleNamespace

import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.training import watched


def ports(monkeypatch, everyone, worker):
    """What a worker makes of everyone's ports."""
    team = SimpleNamespace(workers=len(everyone), worker=worker)
    given = []

    def mean(strategy, mine):
        given.append(list(mine))
        return [port / len(everyone) for port in everyone]

    monkeypatch.setattr(watched, "mean_over_workers", mean)
    found = watched._ports(None, team, everyone[worker])
    [mine] = given
    assert mine == [everyone[worker] if other == worker else 0 for other in range(len(everyone))]
    return found


@pytest.mark.parametrize("everyone", [(5000, 65535, 1024), (0, 0, 0)])
def test_ports(monkeypatch, everyone):
    assert ports(monkeypatch, everyone, 1) == list(everyone)


# Bug caught: one worker without a watch, whose next message the others take for its port.
@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_watch_of_some_is_refused_by_all(monkeypatch, worker):
    with pytest.raises(UsageError, match=r"on all workers or on none. Received: 0 on worker\(s\) 1 of 3"):
        ports(monkeypatch, (5000, 0, 1024), worker)
