import numpy as np
import pytest
import tensorflow as tf

from swav_tf.model.batch_norm import BatchNorm
from swav_tf.training.build import build_swav
from tests.replicas import REPLICAS
from tests.swav_models import batches_of_crops, tiny_recipe


def collectives_of_a_step(strategy, recipe) -> tuple[int, int]:
    """Collective operations of one traced step, for each replica; and the number of BN calls in it."""
    with strategy.scope():
        model = build_swav(recipe)
    [batch] = batches_of_crops(recipe, 1)
    shares = tuple(
        strategy.experimental_distribute_values_from_function(
            lambda context, g=group: tf.constant(np.split(g, REPLICAS)[context.replica_id_in_sync_group])
        )
        for group in batch
    )

    @tf.function(autograph=False)
    def step(shares):
        return strategy.run(model.train_step, args=(shares, tf.zeros([2])))

    graph = step.get_concrete_function(shares).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    count = sum(
        node.op.startswith(("CollectiveReduce", "CollectiveGather", "NcclAllReduce")) for node in nodes
    )
    in_backbone = sum(isinstance(layer, BatchNorm) for layer in model.backbone.layers)
    in_head = sum(isinstance(layer, BatchNorm) for layer in model.head.layers)
    return count // REPLICAS, in_backbone * len(recipe.crops) + in_head


# Bugs caught: a BN call that needs more than one sum forward and one backward, a sum for each crop or for
# each gradient. A collective costs its latency: their number decides how well many replicas scale.
# ResNet-50 has 107 BN calls with two kinds of crops: 2 x 107 + 5 = 219.
@pytest.mark.parametrize(("synchronised", "of_a_bn_call"), [(True, 2), (False, 0)])
def test_collectives_of_a_step(mirrored, synchronised, of_a_bn_call):
    recipe = tiny_recipe(method__queue={"length": 16}, model__batch_norm={"synchronised": synchronised})
    count, bn_calls = collectives_of_a_step(mirrored, recipe)
    assert bn_calls == 7
    sinkhorn, gradients, diagnostics = 3, 1, 1
    assert count == of_a_bn_call * bn_calls + sinkhorn + gradients + diagnostics
