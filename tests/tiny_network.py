"""A network of one block, known as resnet_tiny wherever this module is imported.

Most of the time of a short training is tracing, which grows with the number of layers. Tests of runs, checkpoints and
commands need none of the layers of the smallest network that users have.
"""

from swav_tf.model.architectures import ARCHITECTURES, Architecture
from swav_tf.recipe import pretraining

TINY = "resnet_tiny"
ARCHITECTURES[TINY] = Architecture("basic", (1,), (16,), "halving")
pretraining.BACKBONES += (TINY,)
