import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.parts import part_numbers


# Bugs caught: numbers from 0 and from 1 mixed up; a task of a repeated array that takes itself for the only one.
def test_parts_by_slurm():
    def task(number, count, least, most, step=1):
        names = {"ID": number, "COUNT": count, "MIN": least, "MAX": most, "STEP": step}
        return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}

    assert part_numbers(None, {}) is None
    assert part_numbers("17/400", task(1, 2, 1, 2)) == (17, 400)
    assert part_numbers(None, task(0, 4, 0, 3)) == (1, 4)
    assert part_numbers(None, task(7, 4, 1, 7, 2)) == (4, 4)
    with pytest.raises(UsageError, match=r"array with gaps, pass --part. Received: 2 tasks numbered 3 to 17"):
        part_numbers(None, task(3, 2, 3, 17))
    for wrong in ("0/4", "5/4", "1", "a/b", "-1/4"):
        with pytest.raises(UsageError, match=r"--part must be I/N .*17/400. Received: "):
            part_numbers(wrong, {})
