"""What befalls a worker before its first step is told to the others. The processes are real, on loopback."""

import re
import signal
import time

import pytest

from swav_tf.recipe.files import save_recipe
from swav_tf.training.rendezvous import ClusterAddress, meet
from tests.ports import reserve_port
from tests.swav_models import tiny_recipe
from tests.training.runs import PRETRAIN, start, wait_until

MANY_SECONDS = 120  # for what takes a few, on a machine that does much else


def two(tmp_path, recipes, **environment):
    """Two workers; the environment is the second one's."""
    master = f"127.0.0.1:{reserve_port()}"
    processes = []
    for rank, recipe in enumerate(recipes):
        save_recipe(recipe, tmp_path / f"{rank}.yaml")
        own = environment if rank else {}
        processes.append(start(PRETRAIN, tmp_path / f"{rank}.yaml", tmp_path / "run", 2, rank, master, **own))
    return processes


def ends(processes):
    """Exit codes, and what was said, of processes that end by themselves."""
    try:
        said = [process.communicate(timeout=MANY_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


# Bug caught: a wrong path on one machine, which the others learn as an unforeseen error of TensorFlow.
@pytest.mark.timeout(300)
def test_a_bad_path_on_one_worker_ends_the_other_with_the_reason(tmp_path):
    good = tiny_recipe()
    data = good.data.model_copy(update={"kind": "images", "path": str(tmp_path / "nowhere")})
    codes, said = ends(two(tmp_path, [good, good.model_copy(update={"data": data})]))
    assert codes == [1, 1], said
    assert re.search(r"worker 0 of 2: Worker 1 \(\S+, process \d+\) failed: .*nowhere", said[0]), said[0][
        -2000:
    ]
    assert "Traceback" not in said[0]


# Bugs caught: a worker that waits for another before the first step and swallows SIGTERM; the others, which wait for
# one that has gone; a code by which a scheduler does not start them again.
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "signalled", "codes", "other_says"),
    [
        (signal.SIGTERM, 0, [143, 143], r"Worker 0 \(.*\) ended: Stopped by SIGTERM"),
        (signal.SIGTERM, 1, [143, 143], r"Worker 1 \(.*\) ended: Stopped by SIGTERM"),
        (signal.SIGKILL, 1, [75, -9], r"Worker 1 \(.*\) is gone"),
    ],
    ids=["the one that waits", "the one that opens its images", "killed"],
)
def test_the_end_of_a_worker_before_the_first_step_ends_all(tmp_path, number, signalled, codes, other_says):
    marker = tmp_path / "opening"
    processes = two(
        tmp_path,
        [tiny_recipe(train__worker_timeout_seconds=5)] * 2,
        SWAV_TF_TEST_STUCK_OPENING=str(marker),
    )
    wait_until(marker.exists, *processes)
    time.sleep(3)  # worker 0 has long opened its own, and waits in TensorFlow
    processes[signalled].send_signal(number)
    ended, said = ends(processes)
    assert ended == codes, said
    assert re.search(other_says, said[1 - signalled]), said[1 - signalled][-2000:]
    if number == signal.SIGTERM:
        assert "Stopped by SIGTERM while no step was being trained" in said[signalled]


# Bug caught: a worker that waits, for minutes and without a word, for one that was lost just after they met.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_lost_after_the_meeting_is_given_up(tmp_path, rank):
    master = f"127.0.0.1:{reserve_port()}"
    save_recipe(tiny_recipe(train__worker_timeout_seconds=5), tmp_path / "recipe.yaml")
    arguments = (tmp_path / "recipe.yaml", tmp_path / "run", 2, rank, master)
    left = start(PRETRAIN, *arguments, SWAV_TF_TEST_START_SECONDS="6")
    meet(ClusterAddress(2, 1 - rank, master), timeout_seconds=MANY_SECONDS)  # and nothing comes after it
    codes, said = ends([left])
    assert codes == [75], said
    assert "All workers must come to the start of the cluster" in said[0]
