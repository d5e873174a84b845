import numpy as np
import tensorflow as tf

from swav_tf.method.feature_queue import FeatureQueue
from tests.replicas import run_on_shares

YES = tf.constant(True)


def batch(number, rows=4, dim=3):
    return np.full((2, rows, dim), number, np.float32) + np.arange(rows, dtype=np.float32)[:, None] / 10


# Bugs caught: oldest first, one queue for both crops, in use a batch too early or late.
def test_newest_first_and_in_use_when_full():
    queue = FeatureQueue(length=8, projection_dim=3, from_step=0)
    states = []
    for number in (1, 2, 3):
        states.append(float(queue.in_use()))
        projections = np.stack([batch(number)[0], -batch(number)[1]])
        queue.push(tf.constant(projections), step=tf.constant(number), wanted=YES)
    assert states == [0.0, 0.0, 1.0]
    np.testing.assert_array_equal(queue.projections[0], np.concatenate([batch(3)[0], batch(2)[0]]))
    np.testing.assert_array_equal(queue.projections[1], -queue.projections[0].numpy())


# Bug caught: a queue that fills before its epoch.
def test_nothing_is_pushed_before_from_step():
    queue = FeatureQueue(length=4, projection_dim=3, from_step=10)
    queue.push(tf.constant(batch(1)), step=tf.constant(9), wanted=YES)
    assert float(queue.in_use()) == 0
    assert not np.any(queue.projections)
    queue.push(tf.constant(batch(1)), step=tf.constant(10), wanted=YES)
    assert float(queue.in_use()) == 1


# Bug caught: one batch of NaN that stays for an epoch.
def test_an_unwanted_batch_leaves_no_trace():
    queue = FeatureQueue(length=4, projection_dim=3, from_step=0)
    queue.push(tf.constant(batch(1)), step=tf.constant(0), wanted=YES)
    queue.push(tf.constant(batch(np.nan)), step=tf.constant(1), wanted=tf.constant(False))
    np.testing.assert_array_equal(queue.projections, batch(1))
    assert int(queue.pushed) == 4


# Bug caught: one replica's rows in another's queue.
def test_each_replica_has_its_own(mirrored):
    with mirrored.scope():
        queue = FeatureQueue(length=4, projection_dim=3, from_step=0)
    rows = np.concatenate([batch(1), batch(2)], axis=1)

    def push(share):
        queue.push(share, step=tf.constant(0), wanted=YES)
        return queue.projections.read_value()

    first, second = run_on_shares(mirrored, push, rows, axis=1)
    np.testing.assert_array_equal(first, batch(1))
    np.testing.assert_array_equal(second, batch(2))
