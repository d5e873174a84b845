"""Two replicas on the CPU, for tests: TensorFlow must be told before its first operation."""

import tensorflow as tf

from swav_tf.training.cluster import mirrored

REPLICAS = 2


def split_cpu() -> None:
    """Makes two logical CPUs of the one; call it when a conftest is imported."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or []) != REPLICAS:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)


def two_replicas() -> tf.distribute.Strategy:
    return mirrored(tuple(device.name for device in tf.config.list_logical_devices("CPU")))


def run_on_shares(strategy, function, *arrays, axis=0):
    """Gives each replica its share of the arrays along `axis`; stacks what they return along `axis`."""

    def share(array, replica):
        return tf.constant(tf.split(array, REPLICAS, axis=axis)[replica])

    shares = [
        strategy.experimental_distribute_values_from_function(
            lambda context, array=array: share(array, context.replica_id_in_sync_group)
        )
        for array in arrays
    ]

    @tf.function(autograph=False)
    def run(*shares):
        return strategy.run(function, args=shares)

    return tf.nest.map_structure(
        lambda value: [part.numpy() for part in strategy.experimental_local_results(value)],
        run(*shares),
    )
