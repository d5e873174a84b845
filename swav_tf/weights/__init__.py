"""Other people's weights, in and out: told by their keys, read without running anything. No TensorFlow."""
