import numpy as np
import pytest

from swav_tf.training.build import build_swav
from swav_tf.training.state import capture, join_queues, restore, split_queue
from tests.swav_models import tiny_recipe

BATCH, SLOTS, CROPS = 8, 3, 2


def rows_of(step):
    """The rows that a batch pushes, (CROPS, BATCH, 1): each has a number of its own."""
    return (100 * (step + 1) + np.arange(BATCH) + 0.5 * np.arange(CROPS)[:, None])[..., None]


def push(queues, batch):
    """What each replica's queue makes of its share of a batch."""
    replicas, _, length, _ = queues.shape
    shares = np.stack(np.split(batch, replicas, axis=1))
    return np.concatenate([shares, queues], axis=2)[:, :, :length]


# Bugs caught: rows of a batch that leave the queue before others of it; a row that is lost, appears twice or takes the
# place of another batch when a run resumes on more replicas or fewer, also while the queue fills.
@pytest.mark.parametrize("route", [(1, 2, 4), (4, 2, 1), (2, 8, 1, 4)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_queue_is_the_same_on_any_route(route, steps):
    queue = np.zeros((CROPS, SLOTS * BATCH, 1))
    undisturbed, step = queue, 0
    for replicas in route:
        queues = split_queue(queue, replicas=replicas, batch_size=BATCH)
        for _ in range(steps):
            queues = push(queues, rows_of(step))
            undisturbed = np.concatenate([rows_of(step), undisturbed], axis=1)[:, : SLOTS * BATCH]
            step += 1
        queue = join_queues(queues, batch_size=BATCH)
    np.testing.assert_array_equal(queue, undisturbed)


# Bugs caught: the halves of the queue in the wrong replica's hands, or each replica with all of it; a count of rows that
# is not shared out; weights or momentum that one copy does not get.
def test_one_replicas_state_goes_to_two_and_back_bit_for_bit(mirrored):
    recipe = tiny_recipe(method__queue={"length": SLOTS * BATCH})
    state, draw = capture(build_swav(recipe), batch_size=BATCH), np.random.default_rng(0)
    state = {
        name: draw.normal(size=array.shape).astype(array.dtype) if array.dtype == np.float32 else array
        for name, array in state.items()
    }
    state["queue/pushed"][:] = 2 * BATCH
    with mirrored.scope():
        two = build_swav(recipe)
    restore(two, state, batch_size=BATCH)
    for name, array in capture(two, batch_size=BATCH).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    halves = [queue.numpy() for queue in mirrored.experimental_local_results(two.queue.projections)]
    np.testing.assert_array_equal(halves[1][:, :4], state["queue/projections"][:, 4:8])
    assert [int(n.numpy()) for n in mirrored.experimental_local_results(two.queue.pushed)] == [BATCH, BATCH]
    one = build_swav(recipe)
    restore(one, capture(two, batch_size=BATCH), batch_size=BATCH)
    for name, array in capture(one, batch_size=BATCH).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
