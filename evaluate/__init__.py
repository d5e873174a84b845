"""What the features are worth. No TensorFlow."""
