"""SwAV self-supervised pretraining in TensorFlow/Keras 3."""

import os

# Everything here is written for Keras on TensorFlow; a keras.json of the user's may say otherwise.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
