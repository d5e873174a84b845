"""Facts about this machine within a container."""

import pytest

from swav_tf.plumbing import system


# Bug caught: a thread for each core of a machine of which a container may use two.
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("3200000 100000", 8)]
)
def test_the_cores_of_a_container(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(system, "CGROUP", tmp_path)
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda _: set(range(8)))
    assert system.available_cores() == 8
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert system.available_cores() == cores
